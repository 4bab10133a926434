#include "machine.h"

#include <sys/mman.h>

#include "check.h"

static const uint64_t RUBBISH = UINT64_C(0xdeadbeef5eedcafe);

static uint64_t pages_of(uint32_t order)
{
    CHECK(order == 0 || order == 9);
    return UINT64_C(1) << order;
}

static void enter(struct machine *machine)
{
    int inside = atomic_fetch_add(&machine->inside, 1) + 1;
    int most = atomic_load(&machine->most_inside);
    while (inside > most && !atomic_compare_exchange_weak(&machine->most_inside, &most, inside)) {
    }
}

static void leave(struct machine *machine)
{
    atomic_fetch_sub(&machine->inside, 1);
}

/* Takes one off a number of failures that are to come. */
static bool fails(atomic_uint *failures)
{
    unsigned left = atomic_load(failures);
    while (left > 0) {
        if (atomic_compare_exchange_weak(failures, &left, left - 1)) {
            return true;
        }
    }
    return false;
}

static _Atomic uint64_t *words_of(struct machine *machine, uint64_t mfn)
{
    CHECK(mfn < machine->frames);
    return machine->arena + mfn * PAGE_WORDS;
}

static uint64_t load(const _Atomic uint64_t *word)
{
    return atomic_load_explicit(word, memory_order_relaxed);
}

static void fill(struct machine *machine, uint64_t mfn, uint64_t pages, uint64_t value)
{
    CHECK(mfn + pages <= machine->frames);
    _Atomic uint64_t *words = words_of(machine, mfn);
    for (uint64_t i = 0; i < pages * PAGE_WORDS; i++) {
        atomic_store_explicit(words + i, value, memory_order_relaxed);
    }
}

static uint32_t first_nonzero(struct machine *machine, uint64_t mfn, uint64_t pages, uint64_t step)
{
    for (uint64_t page = 0; page < pages; page++) {
        const _Atomic uint64_t *words = words_of(machine, mfn + page);
        for (uint64_t word = 0; word < step; word++) {
            if (load(words + word) != 0) {
                return (uint32_t)(page * PAGE_WORDS + word);
            }
        }
    }
    return ZS_ALL_ZERO;
}

static bool is_here(struct machine *machine, uint64_t mfn, uint64_t pages)
{
    for (uint64_t i = 0; i < pages; i++) {
        if (machine->is_out[mfn + i]) {
            return false;
        }
    }
    return true;
}

/* Takes the first run of `pages` within frames `from` to `end`. */
static int32_t take(struct machine *machine, uint64_t from, uint64_t end, uint64_t pages,
                    uint64_t *mfn)
{
    if (fails(&machine->fail_allocations)) {
        return 1;
    }
    pthread_mutex_lock(&machine->pool);
    uint64_t at = from;
    while (at < end && !is_here(machine, at, pages)) {
        at += pages;
    }
    if (at < end) {
        for (uint64_t i = 0; i < pages; i++) {
            machine->is_out[at + i] = true;
        }
        machine->frames_out += pages;
    }
    pthread_mutex_unlock(&machine->pool);
    if (at >= end) {
        return 1;
    }
    fill(machine, at, pages, RUBBISH);
    *mfn = at;
    return 0;
}

static int32_t machine_allocate(void *opaque, uint32_t order, uint64_t *mfn, uint32_t *content)
{
    struct machine *machine = opaque;
    enter(machine);
    int32_t result = take(machine, 0, machine->frames, pages_of(order), mfn);
    *content = ZS_CONTENT_UNKNOWN;
    leave(machine);
    return result;
}

static int32_t machine_allocate_in(void *opaque, uint64_t superframe, uint64_t *mfn,
                                   uint32_t *content)
{
    struct machine *machine = opaque;
    (void)content;
    enter(machine);
    int32_t result = take(machine, superframe, superframe + ZS_SUPERPAGE_PAGES, 1, mfn);
    leave(machine);
    return result;
}

static void machine_free(void *opaque, uint64_t mfn, uint32_t order)
{
    struct machine *machine = opaque;
    enter(machine);
    pthread_mutex_lock(&machine->pool);
    for (uint64_t i = 0; i < pages_of(order); i++) {
        CHECK(machine->is_out[mfn + i]);
        machine->is_out[mfn + i] = false;
    }
    machine->frames_out -= pages_of(order);
    pthread_mutex_unlock(&machine->pool);
    leave(machine);
}

static struct superpage *superpage_of(struct machine *machine, uint64_t gfn)
{
    CHECK(gfn / ZS_SUPERPAGE_PAGES < machine->superpages);
    return &machine->table[gfn / ZS_SUPERPAGE_PAGES];
}

static uint32_t machine_map(void *opaque, uint64_t gfn, uint64_t mfn, uint32_t order)
{
    struct machine *machine = opaque;
    if (fails(&machine->fail_maps)) {
        return ZS_MAPPED_FAILED;
    }
    enter(machine);
    struct superpage *superpage = superpage_of(machine, gfn);
    pthread_rwlock_wrlock(&superpage->lock);
    for (uint64_t i = 0; i < pages_of(order); i++) {
        uint64_t *entry = &superpage->mfn[gfn % ZS_SUPERPAGE_PAGES + i];
        CHECK_EQ(*entry, NOWHERE);
        *entry = mfn + i;
    }
    pthread_rwlock_unlock(&superpage->lock);
    leave(machine);
    bool pieces = order == 9 && atomic_load(&machine->maps_pieces);
    return pieces ? ZS_MAPPED_PIECES : ZS_MAPPED_WHOLE;
}

static uint32_t machine_unmap(void *opaque, uint64_t gfn, uint64_t mfn, uint32_t order)
{
    struct machine *machine = opaque;
    uint64_t busy = atomic_load(&machine->busy);
    if (busy >= mfn && busy < mfn + pages_of(order)) {
        return ZS_UNMAPPED_BUSY;
    }
    enter(machine);
    struct superpage *superpage = superpage_of(machine, gfn);
    pthread_rwlock_wrlock(&superpage->lock);
    for (uint64_t i = 0; i < pages_of(order); i++) {
        uint64_t *entry = &superpage->mfn[gfn % ZS_SUPERPAGE_PAGES + i];
        CHECK_EQ(*entry, mfn + i);
        *entry = NOWHERE;
    }
    pthread_rwlock_unlock(&superpage->lock);
    leave(machine);
    return ZS_UNMAPPED_DONE;
}

static void machine_flush(void *opaque)
{
    struct machine *machine = opaque;
    atomic_fetch_add(&machine->flushes, 1);
}

static uint32_t machine_quick_check(void *opaque, uint64_t gfn, uint64_t mfn, uint32_t order)
{
    struct machine *machine = opaque;
    (void)gfn;
    enter(machine);
    uint32_t word = first_nonzero(machine, mfn, pages_of(order), 16);
    leave(machine);
    return word;
}

static uint64_t machine_peek(void *opaque, uint64_t gfn, uint64_t mfn, uint32_t word)
{
    (void)gfn;
    return load(words_of(opaque, mfn) + word);
}

static uint32_t machine_zero_check(void *opaque, uint64_t mfn, uint64_t pages)
{
    struct machine *machine = opaque;
    uint32_t answer = 0;
    enter(machine);
    if (!machine->before_zero_check
        || !machine->before_zero_check(machine->before_opaque, mfn, &answer)) {
        answer = first_nonzero(machine, mfn, pages, PAGE_WORDS);
    }
    leave(machine);
    return answer;
}

static void machine_clear(void *opaque, uint64_t mfn, uint32_t order)
{
    struct machine *machine = opaque;
    enter(machine);
    fill(machine, mfn, pages_of(order), 0);
    leave(machine);
}

static void machine_copy(void *opaque, uint64_t from, uint64_t to)
{
    struct machine *machine = opaque;
    enter(machine);
    for (uint64_t i = 0; i < PAGE_WORDS; i++) {
        atomic_store_explicit(words_of(machine, to) + i, load(words_of(machine, from) + i),
                              memory_order_relaxed);
    }
    leave(machine);
}

static uint32_t machine_scrub(void *opaque, uint64_t gfn, uint64_t mfn)
{
    struct machine *machine = opaque;
    struct superpage *superpage = superpage_of(machine, gfn);
    enter(machine);
    pthread_rwlock_rdlock(&superpage->lock);
    CHECK_EQ(superpage->mfn[gfn % ZS_SUPERPAGE_PAGES], mfn);
    bool zero = first_nonzero(machine, mfn, 1, PAGE_WORDS) == ZS_ALL_ZERO;
    if (!zero) {
        fill(machine, mfn, 1, 0);
    }
    pthread_rwlock_unlock(&superpage->lock);
    leave(machine);
    return zero ? ZS_CONTENT_ZERO : ZS_CONTENT_UNKNOWN;
}

static void machine_park(void *opaque, uint64_t mfn)
{
    struct machine *machine = opaque;
    CHECK_EQ(mfn % ZS_SUPERPAGE_PAGES, 0);
    atomic_fetch_add(&machine->parks, 1);
}

static void machine_retire(void *opaque, uint64_t mfn)
{
    struct machine *machine = opaque;
    CHECK(machine->is_out[mfn]);
    atomic_fetch_add(&machine->retires, 1);
}

void machine_init(struct machine *machine, uint64_t frames, uint64_t superpages)
{
    *machine = (struct machine){.frames = frames, .superpages = superpages, .busy = NOWHERE};
    void *arena = mmap(NULL, frames * ZS_PAGE_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(arena != MAP_FAILED);
    machine->arena = arena;
    machine->is_out = calloc(frames, sizeof *machine->is_out);
    machine->table = calloc(superpages, sizeof *machine->table);
    CHECK(machine->is_out && machine->table);
    CHECK_EQ(pthread_mutex_init(&machine->pool, NULL), 0);
    for (uint64_t n = 0; n < superpages; n++) {
        CHECK_EQ(pthread_rwlock_init(&machine->table[n].lock, NULL), 0);
        for (uint64_t i = 0; i < ZS_SUPERPAGE_PAGES; i++) {
            machine->table[n].mfn[i] = NOWHERE;
        }
    }
}

void machine_end(struct machine *machine)
{
    for (uint64_t n = 0; n < machine->superpages; n++) {
        pthread_rwlock_destroy(&machine->table[n].lock);
    }
    pthread_mutex_destroy(&machine->pool);
    free(machine->table);
    free(machine->is_out);
    munmap((void *)machine->arena, machine->frames * ZS_PAGE_BYTES);
}

zs_machine machine_functions(struct machine *machine)
{
    return (zs_machine){
        .size = sizeof(zs_machine),
        .opaque = machine,
        .allocate = machine_allocate,
        .free = machine_free,
        .map = machine_map,
        .unmap = machine_unmap,
        .flush = machine_flush,
        .quick_check = machine_quick_check,
        .peek = machine_peek,
        .zero_check = machine_zero_check,
        .clear = machine_clear,
        .copy = machine_copy,
        .scrub = machine_scrub,
        .allocate_in = machine_allocate_in,
        .park = machine_park,
        .retire = machine_retire,
    };
}

/* The word that a guest reaches, with the lock of its superpage held; NULL, and no lock, if there
 * is none. */
static _Atomic uint64_t *reach(struct machine *machine, uint64_t gfn, unsigned word)
{
    struct superpage *superpage = superpage_of(machine, gfn);
    pthread_rwlock_rdlock(&superpage->lock);
    uint64_t mfn = superpage->mfn[gfn % ZS_SUPERPAGE_PAGES];
    if (mfn == NOWHERE) {
        pthread_rwlock_unlock(&superpage->lock);
        return NULL;
    }
    return words_of(machine, mfn) + word;
}

bool guest_try_read(struct machine *machine, uint64_t gfn, unsigned word, uint64_t *value)
{
    _Atomic uint64_t *reached = reach(machine, gfn, word);
    if (!reached) {
        return false;
    }
    *value = load(reached);
    pthread_rwlock_unlock(&superpage_of(machine, gfn)->lock);
    return true;
}

bool guest_try_write(struct machine *machine, uint64_t gfn, unsigned word, uint64_t value)
{
    _Atomic uint64_t *reached = reach(machine, gfn, word);
    if (!reached) {
        return false;
    }
    atomic_store_explicit(reached, value, memory_order_relaxed);
    pthread_rwlock_unlock(&superpage_of(machine, gfn)->lock);
    return true;
}
