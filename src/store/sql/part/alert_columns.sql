-- What an alert says, from the event `e`. A row that was made by hand may have a detail of any shape, so all of it is
-- read as text, and cut. `cause` of a replacement counts only if it is the cause of the incarnation that was replaced.
e.idx, e.at, e.kind, e.pod_id, e.incarnation, left(e.by_pod, 200) AS by_pod,
left(e.detail->>'reason', 100) AS reason,
CASE WHEN e.kind <> 'joined' OR e.detail->>'former' = e.detail->>'replaced'
     THEN left(e.detail->>'cause', 100) END AS cause,
left(e.detail->>'replaced', 100) AS replaced,
left(e.detail->>'run', 100) AS run,
left(e.detail->>'kind', 1000) AS run_kind,
e.detail->>'why' IS NOT NULL AS is_unclaimable,
left(e.detail->>'workers', 20) AS workers
