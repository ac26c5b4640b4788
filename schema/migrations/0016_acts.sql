-- What people say of models besides files, and a journal of acts, so that what was said can be taken back.

alter table raw.model add column notes varchar;
alter table raw.model add column by_hand varchar[];         -- facts said by hand, which no file's word replaces
alter table raw.model add column removed_digest varchar;    -- of a base that was removed: what its members were measured against

create table raw.tag (
    model_id integer not null,
    tag      varchar not null
);

create table raw.act (
    act_id    integer primary key,
    verb      varchar not null,             -- the command
    said      varchar not null,             -- what it was told
    changed   varchar not null,             -- rows by kind, in words
    columns   json,                         -- of each table it changed, as its rows are kept; NULL: an act that undo skips
    acted_at  timestamp not null default (now() at time zone 'UTC')
);

create table raw.change (                   -- rows that an act took away, and what tells those that it added
    act_id   integer not null,
    of_table varchar not null,
    first    varchar,                       -- an added row's first column, to find it by
    digest   varchar,                       -- md5 of an added row; NULL: a row taken away
    was      json                           -- a row taken away, each column as text
);
