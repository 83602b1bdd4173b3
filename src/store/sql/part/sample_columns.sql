h.incarnation, h.number, h.sampled_at, h.status, h.health, h.cpu_usage, h.memory_pressure, h.memory_available,
       h.running_runs, h.runtime_lag_ms, h.gauges, h.details
