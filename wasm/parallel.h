/* One job on several threads.
 *
 * A job has many small steps, and every thread claims a share of those that are left until none is: large shares at
 * first, because memory is read fastest in one go, and small ones at the end, so that all come to it together. The
 * caller works like the others. A helper that the machine does not run at the moment claims nothing and is not waited
 * for; one that has claimed a share is. Which thread computes a step never matters to the result.
 *
 * A thread that waits first spins for a moment, because the next job of a forward pass comes at once and the next
 * token's first one as soon as Python has picked it; then it sleeps, because others may need the core.
 *
 * Builds without threads (no WebAssembly atomics, natively no -pthread) have the same functions and one thread.
 */
#ifndef FABELLA_PARALLEL_H
#define FABELLA_PARALLEL_H

#include "abi.h"
#include <stdint.h>

enum { MAX_THREADS = 8 };

/* Computes the steps first .. end - 1. `thread` is below the number of threads, and nobody else's meanwhile. */
typedef void Job(void *context, int first, int end, int thread);

#if defined(__wasm_atomics__) || defined(_REENTRANT)

#include <stdatomic.h>

#ifndef SPIN_LOOKS
#define SPIN_LOOKS 200000 /* at a word before going to sleep: some 100 microseconds */
#endif

/* The claims' word. Its low 24 bits: steps that nobody has claimed; above them: the number of threads. */
enum { LEFT = 0xffffff, TOP_SHIFT = 24 };

/* A number that threads wait for. On a cache line of its own: the others are written all the time as well. */
typedef struct {
    _Alignas(64) _Atomic uint32_t value;
    _Atomic uint32_t sleepers;
} Word;

static Word claims = {.value = 1u << TOP_SHIFT};
static Word unfinished; /* steps of the job that are not computed yet */

/* The job. Written only while no step is unfinished, read only by those who have claimed some. */
static struct {
    Job *run;
    void *context;
    uint32_t steps;
} current;

#ifdef __wasm__
/* Sleeps, unless the word has another value already. */
static void sleep_while(Word *word, uint32_t value) {
    __builtin_wasm_memory_atomic_wait32((int32_t *)&word->value, (int32_t)value, -1);
}

static void wake_all(Word *word) { __builtin_wasm_memory_atomic_notify((int32_t *)&word->value, UINT32_MAX); }
#else
#include <pthread.h>

static pthread_mutex_t sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t awake = PTHREAD_COND_INITIALIZER;

static void sleep_while(Word *word, uint32_t value) {
    pthread_mutex_lock(&sleep_lock);
    if (word->value == value) pthread_cond_wait(&awake, &sleep_lock);
    pthread_mutex_unlock(&sleep_lock);
}

static void wake_all(Word *word) {
    (void)word;
    pthread_mutex_lock(&sleep_lock);
    pthread_cond_broadcast(&awake);
    pthread_mutex_unlock(&sleep_lock);
}
#endif

/* Waits for the word to have another value; may return early. */
static void await_change(Word *word, uint32_t value) {
    for (int i = 0; i < SPIN_LOOKS; i++)
        if (word->value != value) return;
    word->sleepers++;
    sleep_while(word, value);
    word->sleepers--;
}

/* To be called after each change that is waited for. A sleeper counts itself before it looks at the value for the last
 * time, and here the value is written before they are counted: one of the two sees the other. */
static void announce(Word *word) {
    if (word->sleepers) wake_all(word);
}

/* Claims a share of the steps, if `seen` is still what the word of claims says, and computes it. */
static void work(uint32_t seen, int thread) {
    const uint32_t threads = seen >> TOP_SHIFT, left = seen & LEFT, share = (left + 2 * threads - 1) / (2 * threads);
    if (!atomic_compare_exchange_strong(&claims.value, &seen, seen - share)) return;
    const uint32_t first = current.steps - left;
    current.run(current.context, (int)first, (int)(first + share), thread);
    if (atomic_fetch_sub(&unfinished.value, share) == share) announce(&unfinished);
}

/* Has the job's steps 0 .. steps - 1 (below 2^24) computed, once each, and returns when all are. */
static void parallel(Job *run, void *context, int steps) {
    uint32_t threads = claims.value >> TOP_SHIFT, seen;
    if (threads == 1 || steps == 1) {
        run(context, 0, steps, 0);
        return;
    }
    current.run = run;
    current.context = context;
    current.steps = (uint32_t)steps;
    unfinished.value = (uint32_t)steps;
    claims.value = threads << TOP_SHIFT | (uint32_t)steps;
    announce(&claims);
    while ((seen = claims.value) & LEFT) work(seen, 0);
    while ((seen = unfinished.value)) await_change(&unfinished, seen);
}

/* What a helper does, as thread 1, 2, ...: its shares of all jobs, until set_threads wants fewer threads. Not to be
 * ended from outside before: parallel would wait for ever for a share that it has claimed. */
EXPORT void thread_main(int thread) {
    for (uint32_t seen; (uint32_t)thread < (seen = claims.value) >> TOP_SHIFT;) {
        if (seen & LEFT)
            work(seen, thread);
        else
            await_change(&claims, seen);
    }
}

/* Lets parallel use n threads from now on, 1 at first, as many as there may be at most; returns how many. The host
 * starts a helper, which calls thread_main, for each but the first; one that it does not start is not waited for. To be
 * called between jobs, by the thread that calls parallel. */
EXPORT int set_threads(int n) {
    n = n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : n;
    claims.value = (uint32_t)n << TOP_SHIFT;
    announce(&claims);
    return n;
}

#else

static void parallel(Job *run, void *context, int steps) { run(context, 0, steps, 0); }

EXPORT int set_threads(int n) {
    (void)n;
    return 1;
}

#endif
#endif
