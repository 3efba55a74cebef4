-- One migration at a time. Waits briefly for another run, then says who holds
-- the lock and since when. The lock lasts until the transaction ends, or, with
-- migration.lock_scope = 'session', until the session does.
DO $$
DECLARE
    wait text := coalesce(nullif(current_setting('migration.lock_wait', true), ''), '15s');
    before text := current_setting('lock_timeout');
    holder record;
BEGIN
    PERFORM set_config('lock_timeout', wait, true);
    IF current_setting('migration.lock_scope', true) = 'session' THEN
        PERFORM pg_advisory_lock(20018, 1);
    ELSE
        PERFORM pg_advisory_xact_lock(20018, 1);
    END IF;
    PERFORM set_config('lock_timeout', before, true);
EXCEPTION WHEN lock_not_available THEN
    SELECT a.pid, a.application_name AS name, a.backend_start AS since INTO holder
    FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'advisory' AND l.classid = 20018 AND l.objid = 1 AND l.objsubid = 2 AND l.granted
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database());
    RAISE EXCEPTION 'another migration is running: % (server process %, since %), still there after %: wait for it to end, or end it with SELECT pg_terminate_backend(%), then run this again',
        coalesce(holder.name, 'unknown'), holder.pid, holder.since, wait, holder.pid
        USING ERRCODE = 'lock_not_available';
END
$$;
