-- Nothing is told from third and fourth powers, and they cost a third of the power sums.

alter table raw.weight drop column sum3;
alter table raw.weight drop column sum4;
