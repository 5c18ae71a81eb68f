/* For tests: what the simulated sensors show at any moment, without waiting. Times in seconds after the epoch. */
#include "libnvidia-ml.c"

int probe_open(void) { return nvmlInit_v2(); }

unsigned long long probe_millijoules(int gpu, double time) {
    sensor_follow(gpu);
    return shown_millijoules(gpu, sensor.settings[gpu], time);
}
unsigned int probe_milliwatts(int gpu, double time, int is_average) {
    sensor_follow(gpu);
    return shown_milliwatts(gpu, sensor.settings[gpu], time, is_average);
}
/* When the update that shows at a moment took place; stream 0 is the counter, 1 the power. */
double probe_update(int gpu, double time, int stream) {
    grid_t grid = grid_of(sensor.settings[gpu], gpu, stream);
    return grid_time(&grid, grid_last(&grid, time));
}
