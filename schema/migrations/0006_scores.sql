-- What makes two results comparable, and which of two is better.

alter table raw.score add column template varchar;          -- chat template, system prompt, few-shot as turns; NULL: none said
alter table raw.score add column higher_is_better boolean;  -- as the file says it; NULL: not said
