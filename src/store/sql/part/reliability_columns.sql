r.updated_at, r.window_days, r.uptime_pct, r.sessions_count, r.mtbf_seconds, r.p10_session_seconds,
       r.median_session_seconds, r.p90_session_seconds, r.hourly_availability, r.disconnect_reasons, r.p_stays_4h,
       r.p_stays_8h, r.last_disconnect_at, r.last_session_seconds, r.score
