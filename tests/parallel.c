/* Stresses wasm/parallel.h natively, under ThreadSanitizer: every step once, on a thread that is wanted, with all that
 * it wrote visible to the caller. Some jobs are held up, so that whatever else the machine does, helpers compute a part
 * of them and both they and the caller fall asleep. Stops at the first mistake. */
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "../wasm/parallel.h"

enum { JOBS = 4000, MAX_STEPS = 300 };

typedef struct {
    int number, threads;
    bool held;               /* its caller waits for a helper, and each helper until the caller sleeps */
    _Atomic bool helped;     /* a helper has claimed a share */
    int computed[MAX_STEPS]; /* by plain writes: ThreadSanitizer sees whether the claims order them */
    int by_thread[MAX_THREADS];
} Counts;

static void fail(const char *what, int number) {
    printf("job %d: %s\n", number, what);
    exit(1);
}

static void count(void *context, int first, int end, int thread) {
    Counts *counts = context;
    if (thread < 0 || thread >= counts->threads) fail("a thread that is not wanted", counts->number);
    if (thread) counts->helped = true;
    while (counts->held && (thread ? !unfinished.sleepers : !counts->helped)) sched_yield();
    for (int step = first; step < end; step++) {
        counts->computed[step]++;
        counts->by_thread[thread]++;
    }
}

static void *help(void *number) {
    thread_main(*(int *)number);
    return NULL;
}

int main(void) {
    pthread_t helpers[MAX_THREADS];
    int numbers[MAX_THREADS], helping = 1;
    srand(1);
    for (int number = 0; number < JOBS; number++) {
        if (number % 200 == 0) { /* other helpers, now and then fewer than there might be */
            set_threads(1);
            while (helping > 1) pthread_join(helpers[--helping], NULL);
            int threads = set_threads(number / 200 % (MAX_THREADS + 1));
            if (threads < 1 || threads > MAX_THREADS) fail("an impossible number of threads", number);
            for (; helping < threads - (number / 200 % 5 == 4); helping++) {
                numbers[helping] = helping;
                if (pthread_create(&helpers[helping], NULL, help, &numbers[helping])) fail("no thread", number);
            }
            set_threads(threads);
        }
        Counts *counts = calloc(1, sizeof *counts);
        int steps = number % 11 ? rand() % MAX_STEPS : number % 3;
        counts->number = number;
        counts->threads = (int)(claims.value >> TOP_SHIFT);
        counts->held = number % 50 == 1 && helping > 1 && steps > 1;
        parallel(count, counts, steps);
        int total = 0;
        for (int i = 0; i < MAX_STEPS; i++)
            if (counts->computed[i] != (i < steps)) fail("a step was not computed once", number);
        for (int i = 0; i < MAX_THREADS; i++) total += counts->by_thread[i];
        if (total != steps) fail("a thread's steps at the same time as another's", number);
        if (counts->held && total == counts->by_thread[0]) fail("no helper has helped", number);
        free(counts);           /* nobody may read it any more */
        if (number % 200 == 99) /* the next one finds all helpers asleep */
            while (claims.sleepers < (unsigned)helping - 1) sched_yield();
    }
    set_threads(1);
    while (helping > 1) pthread_join(helpers[--helping], NULL);
    return 0;
}
