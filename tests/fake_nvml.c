/* A libnvidia-ml.so.1 for tests: as much of NVML as nvidia-ml-py calls for memory.

   What it reports stands in the file that $FAKE_NVML names, which it reads again at every call, so that a test
   can move memory, end a process or break a GPU while the daemon runs. Its lines:
     gpu TOTAL USED              one for each GPU, in their order, in bytes
     proc GPU PID BYTES          a process's memory on a GPU
     fail CODE                   every call returns this NVML code (9: no driver, 999: unknown)
     lost GPU CODE               every call about this GPU does (15: it fell off the bus)
     mute GPU CODE               asking for this GPU's processes does (3: not supported)
     hang                        no call returns while this line is there */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9 };
enum { GPUS = 16, PROCESSES = 64, POLL_MICROSECONDS = 10000 };

struct gpu { unsigned long long total, used; int lost, mute; };
struct process { unsigned gpu, pid; unsigned long long bytes; };
struct state { struct gpu gpus[GPUS]; struct process processes[PROCESSES]; int gpu_count, process_count, fail, hang; };
struct memory { unsigned long long total, free, used; };
struct process_info { unsigned pid; unsigned long long bytes; unsigned gpu_instance, compute_instance; };

static void take(struct state *state, const char *line) {
    struct gpu *gpu = &state->gpus[state->gpu_count];
    struct process *process = &state->processes[state->process_count];
    unsigned index;
    int code;
    if (state->gpu_count < GPUS && sscanf(line, "gpu %llu %llu", &gpu->total, &gpu->used) == 2) state->gpu_count++;
    else if (state->process_count < PROCESSES &&
             sscanf(line, "proc %u %u %llu", &process->gpu, &process->pid, &process->bytes) == 3) state->process_count++;
    else if (sscanf(line, "lost %u %d", &index, &code) == 2 && index < GPUS) state->gpus[index].lost = code;
    else if (sscanf(line, "mute %u %d", &index, &code) == 2 && index < GPUS) state->gpus[index].mute = code;
    else if (line[0] == 'h') state->hang = 1;
    else sscanf(line, "fail %d", &state->fail);
}

/* The state as it is now, in a caller's own copy: several threads may ask at once. Returns NVML's code. */
static int look(struct state *state) {
    const char *path = getenv("FAKE_NVML");
    char line[256];
    do {
        FILE *file = path ? fopen(path, "r") : NULL;
        *state = (struct state){0};
        if (!file) return DRIVER_NOT_LOADED;
        while (fgets(line, sizeof line, file)) take(state, line);
        fclose(file);
    } while (state->hang && usleep(POLL_MICROSECONDS) == 0);
    return state->fail;
}

/* A GPU's handle is its index plus one. Its index, or the negative of NVML's code. */
static int find(struct state *state, void *handle) {
    int code = look(state), index = (int)(long)handle - 1;
    if (code) return -code;
    if (index < 0 || index >= state->gpu_count) return -INVALID_ARGUMENT;
    return state->gpus[index].lost ? -state->gpus[index].lost : index;
}

int nvmlInitWithFlags(unsigned flags) {
    struct state state;
    (void)flags;
    return look(&state);
}

int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code) { return code == SUCCESS ? "Success" : "fake NVML error"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    struct state state;
    int code = look(&state);
    *count = (unsigned)state.gpu_count;
    return code;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    struct state state;
    int found = find(&state, (void *)((long)index + 1));
    *handle = (void *)((long)index + 1);
    return found < 0 ? -found : SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *handle, struct memory *memory) {
    struct state state;
    int found = find(&state, handle);
    if (found < 0) return -found;
    struct gpu *gpu = &state.gpus[found];
    *memory = (struct memory){gpu->total, gpu->total - gpu->used, gpu->used};
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, struct process_info *infos) {
    struct state state;
    int found = find(&state, handle);
    unsigned n = 0, capacity = *count;
    if (found < 0) return -found;
    if (state.gpus[found].mute) return state.gpus[found].mute;
    for (int i = 0; i < state.process_count; i++) {
        struct process *process = &state.processes[i];
        if (process->gpu != (unsigned)found) continue;
        if (infos && n < capacity) infos[n] = (struct process_info){process->pid, process->bytes, ~0u, ~0u};
        n++;
    }
    *count = n;
    return n > capacity ? INSUFFICIENT_SIZE : SUCCESS;
}
