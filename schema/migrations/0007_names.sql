-- Who says that a model has a name: files, pages and people; several may say the same.

create table raw.name_said (
    alias   varchar not null,
    source  varchar not null,               -- the file or page
    said_at timestamp not null default (now() at time zone 'UTC')
);
