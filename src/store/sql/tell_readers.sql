-- Notifies the readers of streams that changed.
--
-- Arguments:
--   own          uuid    the incarnation whose own readers need no notice, NULL for none
--   by           text    the sender's number in the notice
--   told_runs    uuid[]  the runs, and for each:
--   told_groups  text[]    its group in the notice (`protocol::notices::group`)
--   groups_most  int4    the most groups that the notice names
--
-- Returns a row if it notified. No row: nobody else reads these runs.
\set tell_readers `cat part/tell_readers.sql`
:tell_readers;
