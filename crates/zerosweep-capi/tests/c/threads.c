/* Many threads on one domain: what waits, what does not wait, and that no byte is lost. */
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "machine.h"

#define SUPERPAGES 8
#define PAGES (SUPERPAGES * ZS_SUPERPAGE_PAGES)
#define GUESTS 4

struct vm {
    struct machine machine;
    zs_domain *domain;
    atomic_uint exhausted;
    atomic_bool stop;
};

static void note_event(void *opaque, const zs_event *event)
{
    struct vm *vm = opaque;
    if (event->kind == ZS_EVENT_KIND_EXHAUSTED) {
        atomic_fetch_add(&vm->exhausted, 1);
    }
}

static void vm_init(struct vm *vm, uint64_t target, uint32_t machine_calls, uint32_t upkeep_by)
{
    memset(vm, 0, sizeof *vm);
    machine_init(&vm->machine, 2 * PAGES, SUPERPAGES);
    zs_config config = {
        .size = sizeof config,
        .max_pages = PAGES,
        .target = target,
        .invalid_touch = ZS_INVALID_TOUCH_INCREASE,
        .machine_calls = machine_calls,
        .upkeep_by = upkeep_by,
        .event = note_event,
        .event_opaque = vm,
    };
    zs_machine functions = machine_functions(&vm->machine);
    OK(zs_domain_create(&config, &functions, &vm->domain));
    OK(zs_populate_on_demand(vm->domain, 0, 12));
    OK(zs_set_target(vm->domain, target));
}

static void vm_end(struct vm *vm)
{
    char text[128];
    int32_t status = zs_audit(vm->domain, text, sizeof text);
    if (status != ZS_STATUS_OK) {
        fprintf(stderr, "audit: %s\n", text);
        exit(1);
    }
    do {
        status = zs_teardown(vm->domain, 1);
    } while (status == ZS_STATUS_MORE);
    OK(status);
    CHECK_EQ(vm->machine.frames_out, 0);
    OK(zs_domain_destroy(vm->domain));
    machine_end(&vm->machine);
}

static zs_statistics statistics(struct vm *vm)
{
    zs_statistics statistics = {.size = sizeof statistics};
    OK(zs_get_statistics(vm->domain, &statistics));
    return statistics;
}

static pthread_t start(void *(*run)(void *), void *opaque)
{
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, run, opaque), 0);
    return thread;
}

/* A guest's page appears; if there is no frame for too long, one is borrowed. */
static void bring(struct vm *vm, uint64_t gfn)
{
    int32_t status;
    do {
        status = zs_fault_wait(vm->domain, gfn, 2, NULL);
        if (status == ZS_STATUS_EXHAUSTED) {
            OK(zs_allow_sweep(vm->domain));
            status = zs_fault_borrowing(vm->domain, gfn, NULL);
        }
    } while (status == ZS_STATUS_MORE);
    OK(status);
}

struct vcpu {
    struct vm *vm;
    unsigned number, rounds;
    uint64_t random;
    /* What this guest last wrote to each page of its own. */
    uint64_t written[PAGES];
};

static uint64_t next_random(struct vcpu *vcpu, uint64_t below)
{
    vcpu->random = vcpu->random * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (vcpu->random >> 33) % below;
}

/* Writes, reads, zeroes, gives back and gives up pages, which lie among those of the others. */
static void *run_vcpu(void *opaque)
{
    struct vcpu *vcpu = opaque;
    struct vm *vm = vcpu->vm;
    for (unsigned round = 0; round < vcpu->rounds; round++) {
        uint64_t gfn = next_random(vcpu, PAGES / GUESTS) * GUESTS + vcpu->number;
        unsigned word = (unsigned)(gfn % PAGE_WORDS);
        uint64_t value;
        switch (next_random(vcpu, 8)) {
        case 0:
        case 1:
            value = (uint64_t)round + 1;
            while (!guest_try_write(&vm->machine, gfn, word, value)) {
                bring(vm, gfn);
            }
            vcpu->written[gfn] = value;
            break;
        case 2:
            while (!guest_try_write(&vm->machine, gfn, word, 0)) {
                bring(vm, gfn);
            }
            vcpu->written[gfn] = 0;
            break;
        case 3:
        case 4:
        case 5:
            OK(zs_decrease(vm->domain, gfn, 0, NULL));
            vcpu->written[gfn] = 0;
            break;
        case 6:
            OK(zs_discard(vm->domain, gfn, 1, NULL));
            vcpu->written[gfn] = 0;
            break;
        default:
            while (!guest_try_read(&vm->machine, gfn, word, &value)) {
                bring(vm, gfn);
            }
            CHECK_EQ(value, vcpu->written[gfn]);
        }
    }
    return NULL;
}

static void *run_keeper(void *opaque)
{
    struct vm *vm = opaque;
    uint64_t next = 0, rounds = 0;
    uint32_t anew = 1;
    while (!vm->stop) {
        if (zs_sweep(vm->domain, &next, 2) == ZS_STATUS_OK) {
            next = 0;
        }
        anew = zs_consolidate(vm->domain, anew, 2, NULL) == ZS_STATUS_OK;
        while (zs_wants_upkeep(vm->domain, 1) == ZS_STATUS_MORE
               && zs_upkeep(vm->domain, 4, 1) == ZS_STATUS_MORE) {
        }
        OK(zs_set_target(vm->domain, rounds % 2 ? PAGES / 2 : PAGES / 4));
        OK(zs_audit(vm->domain, NULL, 0));
        rounds++;
        usleep(200);
    }
    CHECK(rounds > 0);
    return NULL;
}

static void no_byte_is_lost(unsigned rounds, uint32_t machine_calls, uint32_t upkeep_by)
{
    struct vm vm;
    vm_init(&vm, PAGES / 4, machine_calls, upkeep_by);
    struct vcpu *vcpus = calloc(GUESTS, sizeof *vcpus);
    CHECK(vcpus);
    pthread_t threads[GUESTS], keeper = start(run_keeper, &vm);
    for (unsigned n = 0; n < GUESTS; n++) {
        vcpus[n].vm = &vm;
        vcpus[n].number = n;
        vcpus[n].rounds = rounds;
        vcpus[n].random = n + 1;
        threads[n] = start(run_vcpu, &vcpus[n]);
    }
    for (unsigned n = 0; n < GUESTS; n++) {
        CHECK_EQ(pthread_join(threads[n], NULL), 0);
    }
    atomic_store(&vm.stop, true);
    CHECK_EQ(pthread_join(keeper, NULL), 0);
    zs_statistics done = statistics(&vm);
    CHECK(done.pages_given_back > 0 && done.zero_checks_2m > 0);
    CHECK(done.populates_2m + done.populates_4k > 0);
    if (machine_calls == ZS_MACHINE_CALLS_SERIAL) {
        CHECK_EQ(vm.machine.most_inside, 1);
    }
    for (uint64_t gfn = 0; gfn < PAGES; gfn++) {
        uint64_t value;
        while (!guest_try_read(&vm.machine, gfn, (unsigned)(gfn % PAGE_WORDS), &value)) {
            bring(&vm, gfn);
        }
        CHECK_EQ(value, vcpus[gfn % GUESTS].written[gfn]);
    }
    free(vcpus);
    vm_end(&vm);
}

/* Holds a thread in the machine's zero check. */
struct gate {
    atomic_bool is_reached, is_open;
    uint32_t answer;
    bool answers;
};

static bool wait_at_gate(void *opaque, uint64_t mfn, uint32_t *answer)
{
    struct gate *gate = opaque;
    (void)mfn;
    atomic_store(&gate->is_reached, true);
    while (!atomic_load(&gate->is_open)) {
        usleep(100);
    }
    *answer = gate->answer;
    return gate->answers;
}

struct call {
    struct vm *vm;
    uint64_t gfn;
    int32_t status;
    atomic_bool is_done;
};

static void *sweep_first(void *opaque)
{
    struct call *call = opaque;
    uint64_t next = 0;
    call->status = zs_sweep(call->vm->domain, &next, 1);
    atomic_store(&call->is_done, true);
    return NULL;
}

static void *fault_for_ever(void *opaque)
{
    struct call *call = opaque;
    call->status = zs_fault_wait(call->vm->domain, call->gfn, UINT64_MAX, NULL);
    atomic_store(&call->is_done, true);
    return NULL;
}

static void *give_back(void *opaque)
{
    struct call *call = opaque;
    call->status = zs_decrease(call->vm->domain, call->gfn, 0, NULL);
    atomic_store(&call->is_done, true);
    return NULL;
}

/* R14: a fault waits for its own range only. */
static void only_faults_on_the_range_wait(void)
{
    struct vm vm;
    struct gate gate = {0};
    vm_init(&vm, PAGES / 2, ZS_MACHINE_CALLS_CONCURRENT, ZS_UPKEEP_BY_OPERATION);
    OK(zs_fault(vm.domain, 0, NULL));
    vm.machine.before_zero_check = wait_at_gate;
    vm.machine.before_opaque = &gate;
    struct call sweep = {.vm = &vm}, fault = {.vm = &vm, .gfn = 5}, giver = {.vm = &vm, .gfn = 7};
    pthread_t threads[3] = {start(sweep_first, &sweep)};
    while (!atomic_load(&gate.is_reached)) {
        usleep(100);
    }
    threads[1] = start(fault_for_ever, &fault);
    threads[2] = start(give_back, &giver);
    OK(zs_fault(vm.domain, 1000, NULL));
    OK(zs_decrease(vm.domain, 2000, 0, NULL));
    zs_entry entry = {.size = sizeof entry};
    OK(zs_lookup(vm.domain, 5, &entry));
    CHECK_EQ(entry.is_in_transit, 1);
    usleep(20000);
    CHECK(!sweep.is_done && !fault.is_done && !giver.is_done);
    atomic_store(&gate.is_open, true);
    for (unsigned n = 0; n < 3; n++) {
        CHECK_EQ(pthread_join(threads[n], NULL), 0);
    }
    CHECK_EQ(sweep.status, ZS_STATUS_MORE);
    OK(fault.status);
    OK(giver.status);
    OK(zs_lookup(vm.domain, 5, &entry));
    CHECK_EQ(entry.is_in_transit, 0);
    CHECK_EQ(entry.kind, ZS_ENTRY_KIND_RAM);
    vm_end(&vm);
}

/* A thread that waits for a domain returns when the domain breaks. */
static void nobody_waits_for_a_broken_domain(void)
{
    struct vm vm;
    struct gate gate = {.answers = true, .answer = 1u << 30};
    vm_init(&vm, PAGES / 2, ZS_MACHINE_CALLS_CONCURRENT, ZS_UPKEEP_BY_OPERATION);
    OK(zs_fault(vm.domain, 0, NULL));
    vm.machine.before_zero_check = wait_at_gate;
    vm.machine.before_opaque = &gate;
    struct call sweep = {.vm = &vm}, fault = {.vm = &vm, .gfn = 5};
    pthread_t threads[2] = {start(sweep_first, &sweep)};
    while (!atomic_load(&gate.is_reached)) {
        usleep(100);
    }
    threads[1] = start(fault_for_ever, &fault);
    usleep(20000);
    CHECK(!fault.is_done);
    atomic_store(&gate.is_open, true);
    CHECK_EQ(pthread_join(threads[0], NULL), 0);
    CHECK_EQ(pthread_join(threads[1], NULL), 0);
    CHECK_EQ(sweep.status, ZS_STATUS_BROKEN);
    CHECK_EQ(fault.status, ZS_STATUS_BROKEN);
    char text[128];
    CHECK_EQ(zs_failure(vm.domain, text, sizeof text), ZS_STATUS_BROKEN);
    CHECK(strstr(text, "zs_machine.zero_check found word 1073741824"));
    OK(zs_domain_destroy(vm.domain));
    machine_end(&vm.machine);
}

/* A guest that has used up its target waits until it may have more. */
static void a_fault_waits_for_frames(void)
{
    struct vm vm;
    vm_init(&vm, 512, ZS_MACHINE_CALLS_CONCURRENT, ZS_UPKEEP_BY_OPERATION);
    for (uint64_t gfn = 0; gfn < 512; gfn++) {
        while (!guest_try_write(&vm.machine, gfn, 0, gfn + 1)) {
            OK(zs_fault(vm.domain, gfn, NULL));
        }
    }
    struct call faults[2] = {{.vm = &vm, .gfn = 600}, {.vm = &vm, .gfn = 1200}};
    pthread_t threads[2] = {start(fault_for_ever, &faults[0]), start(fault_for_ever, &faults[1])};
    while (atomic_load(&vm.exhausted) < 2) {
        usleep(100);
    }
    usleep(20000);
    CHECK(!faults[0].is_done && !faults[1].is_done);
    /* They do not keep each other awake. */
    CHECK(atomic_load(&vm.exhausted) <= 4);
    OK(zs_set_target(vm.domain, 514));
    for (unsigned n = 0; n < 2; n++) {
        CHECK_EQ(pthread_join(threads[n], NULL), 0);
        OK(faults[n].status);
        /* Or a sweep would take it back. */
        CHECK(guest_try_write(&vm.machine, faults[n].gfn, 0, 1));
    }

    /* And until it gives something back; or until it is taken down. */
    faults[0] = (struct call){.vm = &vm, .gfn = 601};
    threads[0] = start(fault_for_ever, &faults[0]);
    usleep(5000);
    CHECK(!faults[0].is_done);
    OK(zs_decrease(vm.domain, 3, 0, NULL));
    CHECK_EQ(pthread_join(threads[0], NULL), 0);
    OK(faults[0].status);
    CHECK(guest_try_write(&vm.machine, 601, 0, 1));
    faults[0] = (struct call){.vm = &vm, .gfn = 602};
    threads[0] = start(fault_for_ever, &faults[0]);
    usleep(5000);
    CHECK(!faults[0].is_done);
    OK(zs_audit(vm.domain, NULL, 0));
    CHECK_EQ(zs_teardown(vm.domain, 1), ZS_STATUS_MORE);
    CHECK_EQ(pthread_join(threads[0], NULL), 0);
    CHECK_EQ(faults[0].status, ZS_STATUS_DYING);
    vm_end(&vm);
}

int main(int count, char **arguments)
{
    alarm(300); /* A thread that waits for ever is a failure. */
    unsigned rounds = count > 1 ? (unsigned)atoi(arguments[1]) : 20000;
    no_byte_is_lost(rounds, ZS_MACHINE_CALLS_CONCURRENT, ZS_UPKEEP_BY_CALLER);
    no_byte_is_lost(rounds, ZS_MACHINE_CALLS_SERIAL, ZS_UPKEEP_BY_OPERATION);
    only_faults_on_the_range_wait();
    nobody_waits_for_a_broken_domain();
    a_fault_waits_for_frames();
    puts("threads: all passed");
    return 0;
}
