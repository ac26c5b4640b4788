-- What lies beside the weights of a folder (a value head, parts of its own) has counted for identity since, and was not
-- looked at before. The folders that hold such files are told by their names, which no query sees: kinbase.store.beside
-- marks their models to be read again when this has run.

update raw.model set to_reread = false where to_reread is null;
