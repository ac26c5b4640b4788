-- The pairs of a large family are stored in several transactions, so that nobody waits long. Models whose pairs are
-- not all stored yet stand here: an import that was killed in between finds them, and measures them again.

create table raw.unfinished (
    model_id integer primary key
);
