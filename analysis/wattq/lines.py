"""The form of the archive's lines: what each key is called and of which type, as docs/archive.md fixes it."""

TICK = """
    {type: 'VARCHAR', monotonic_nano: 'BIGINT', device: 'INTEGER[]', energy_joules: 'DOUBLE[]',
     old_us: 'DOUBLE[]', read_us: 'DOUBLE[]', power_device: 'INTEGER[]', power_watts: 'DOUBLE[]',
     power_old_us: 'DOUBLE[]', power_read_us: 'DOUBLE[]', time_unix_nano: 'BIGINT', boottime_nano: 'BIGINT'}
"""

STATE = """
    {type: 'VARCHAR', monotonic_nano: 'BIGINT', cpu_utilization_ratio: 'DOUBLE', memory_used_bytes: 'BIGINT',
     memory_total_bytes: 'BIGINT',
     gpus: 'STRUCT("number" INTEGER, utilization_ratio DOUBLE, memory_used_bytes BIGINT,
            memory_total_bytes BIGINT, temperature_celsius DOUBLE, sm_clock_hertz DOUBLE,
            power_limit_watts DOUBLE, throttle_reasons VARCHAR)[]'}
"""

MARK = """
    {type: 'VARCHAR', seq: 'BIGINT', boot_id: 'VARCHAR', client: 'VARCHAR', mark: 'BIGINT', run_id: 'VARCHAR',
     "rank": 'INTEGER', phase_number: 'BIGINT', phase: 'VARCHAR', thread: 'INTEGER',
     begin_monotonic_nano: 'BIGINT', end_monotonic_nano: 'BIGINT', tokens: 'BIGINT', failed: 'BOOLEAN',
     closed_by: 'VARCHAR', gpu_begin_monotonic_nano: 'BIGINT', gpu_end_monotonic_nano: 'BIGINT',
     gpu_error_nano: 'BIGINT', gpu_reason: 'VARCHAR'}
"""

EVENT = """
    {type: 'VARCHAR', seq: 'BIGINT', boot_id: 'VARCHAR', client: 'VARCHAR', mark: 'BIGINT',
     monotonic_nano: 'BIGINT', run_id: 'VARCHAR', run: 'VARCHAR', method: 'VARCHAR', seed: 'BIGINT',
     tokens_phase: 'VARCHAR', "rank": 'INTEGER', local_rank: 'INTEGER', world_size: 'INTEGER',
     gpu_uuids: 'VARCHAR[]', gpu_source: 'VARCHAR', resume: 'BOOLEAN', synchronised: 'BOOLEAN', pid: 'BIGINT',
     job_id: 'VARCHAR', user: 'VARCHAR', uid: 'BIGINT', account: 'VARCHAR', partition: 'VARCHAR',
     restarts: 'INTEGER', devices: 'VARCHAR[]', closed_by: 'VARCHAR', request_id: 'VARCHAR',
     harness: 'VARCHAR', harness_version: 'VARCHAR', task: 'VARCHAR', metric: 'VARCHAR', value: 'DOUBLE',
     stderr: 'DOUBLE', n: 'BIGINT', settings_sha256: 'VARCHAR', model: 'VARCHAR', model_sha256: 'VARCHAR',
     batch: 'BIGINT', tokens_in: 'BIGINT', tokens_out: 'BIGINT', energy_prefill_joules: 'DOUBLE',
     energy_decode_joules: 'DOUBLE', energy_joules: 'DOUBLE', begin_monotonic_nano: 'BIGINT',
     end_monotonic_nano: 'BIGINT', reason: 'VARCHAR', device: 'VARCHAR', sensor: 'VARCHAR', up: 'BOOLEAN'}
"""

CALIBRATION = """
    {type: 'VARCHAR', device: 'VARCHAR', time_unix_nano: 'BIGINT', counter_delay_seconds: 'DOUBLE',
     rise_seconds: 'DOUBLE', power_delay_seconds: 'DOUBLE', power_window_seconds: 'DOUBLE',
     power_gain: 'DOUBLE', power_offset_watts: 'DOUBLE', counter_window_seconds: 'DOUBLE',
     covariance: 'DOUBLE[][]'}
"""

# Only what the estimator needs of a samples line; a key that is not asked for is not parsed.
READING = """
    {type: 'VARCHAR', monotonic_nano: 'BIGINT', device: 'INTEGER[]', energy_joules: 'DOUBLE[]',
     old_us: 'DOUBLE[]', read_us: 'DOUBLE[]', power_device: 'INTEGER[]', power_watts: 'DOUBLE[]',
     power_old_us: 'DOUBLE[]', power_read_us: 'DOUBLE[]',
     gpus: 'STRUCT("number" INTEGER, power_limit_watts DOUBLE, sm_clock_hertz DOUBLE)[]'}
"""

# In the form that json_transform wants, as it is asked of one line.
HEADER = """
    {"type": "VARCHAR", "version": "INTEGER", "kind": "VARCHAR", "node": "VARCHAR", "boot_id": "VARCHAR",
     "segment": "BIGINT", "wattd_version": "VARCHAR", "monotonic_nano": "BIGINT", "time_unix_nano": "BIGINT",
     "devices": [{"number": "INTEGER", "device": "VARCHAR", "index": "INTEGER", "domain": "VARCHAR",
                  "source": "VARCHAR", "sensor": "VARCHAR", "model": "VARCHAR", "update_nano": "BIGINT",
                  "uncertainty_ratio": "DOUBLE", "power_limit_watts": "DOUBLE"}]}
"""


def spread(values: str, entries: str) -> str:
    """Returns SQL for a list with one number an entry, where a list of one number holds for every entry."""
    one = f"list_resize({values}, len({entries}), {values}[1])"
    return f"case when len({values}) = 1 then {one} else {values} end"


def nanoseconds(microseconds: str) -> str:
    """Returns SQL for whole nanoseconds; null stays null."""
    return f"cast(round({microseconds} * 1000) as bigint)"
