/* QEMU plugin: estimated cycles of a Cortex-M program, by classes of instructions.

   gcc -O2 -shared -fPIC -o libcycles.so qemu_cycles.c
   qemu-system-arm ... -plugin ./libcycles.so[,core=m55]

   Costs, from the instruction timings in the Cortex-M4 Technical Reference Manual (no wait states, nothing pipelined
   across instructions, so loads that follow each other are counted too dear):
     load or store                          2
     several registers (LDM, PUSH, LDRD)    1 + their number
     taken branch                           3 (also what loads the program counter: 2 on top)
     UDIV, SDIV                             12 (the manual: 2 to 12, by the operands; the dearest is taken)
     VDIV, VSQRT                            14
     floating point multiply-accumulate     3
     everything else                        1
   core=m55 adds the vector extension (MVE): a vector instruction takes 2 (each of its four beats works on 32 bits, the
   core does two beats a cycle), a vector load or store 2, the end of a low-overhead loop 1 even where it branches.
   Scalar instructions cost what they cost on the Cortex-M4.

   Prints at exit: instructions, cycles, and how often each class was executed. Declares only what it needs of QEMU's
   plugin API (version 1). */
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
typedef struct {
  const char *target_name;
  struct {
    int min, cur;
  } version;
  bool system_emulation;
} qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };
typedef void (*on_translation)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*on_execution)(unsigned, void *);
typedef void (*at_exit)(qemu_plugin_id_t, void *);
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, on_translation);
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, on_execution, enum qemu_plugin_cb_flags,
                                                 void *);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, enum qemu_plugin_op, void *, uint64_t);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
extern uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
extern void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, at_exit, void *);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

enum { OTHER, LOAD, STORE, MULTIPLE, BRANCH, DIVIDE, FLOAT_DIVIDE, FLOAT_MAC, VECTOR, VECTOR_MEMORY, LOOP_END, CLASSES };
static const char *const names[CLASSES] = {"other",    "load",           "store",          "multiple", "branch",
                                           "divide",   "float divide",   "float mac",      "vector",   "vector memory",
                                           "loop end"};

typedef struct {
  uint64_t start, end; /* addresses of the first instruction and behind the last */
  bool cheap;          /* ends with the end of a low-overhead loop */
} Block;

static uint64_t instructions, cycles, taken, executed[CLASSES];
static bool vectors;
static const Block *last;

static unsigned ones(unsigned bits) { return (unsigned)__builtin_popcount(bits); }

/* Class of a 16-bit instruction; *cost is what it takes when it does not branch. */
static int narrow(unsigned op, unsigned *cost) {
  unsigned top = op >> 11;
  *cost = 1;
  if (top == 9 || (op >> 12 == 5) || (top >= 12 && top <= 19)) { /* literal, register offset, immediate, stack */
    bool load = top == 9 || (op >> 12 == 5 ? ((op >> 9) & 7) >= 3 : (top & 1));
    *cost = 2;
    return load ? LOAD : STORE;
  }
  if (op >> 12 == 12) { /* STMIA, LDMIA */
    *cost = 1 + ones(op & 0xff);
    return MULTIPLE;
  }
  if ((op & 0xf600) == 0xb400) { /* PUSH, POP */
    *cost = 1 + ones(op & 0x1ff);
    return MULTIPLE;
  }
  if (op >> 12 == 13 || top == 28 || (op & 0xff00) == 0x4700 || (op & 0xf500) == 0xb100) return BRANCH;
  return OTHER;
}

static int coprocessor(unsigned hi, unsigned lo, unsigned *cost) {
  unsigned cp = (lo >> 8) & 15;
  *cost = 1;
  if ((hi & 0xef00) == 0xef00 || (hi & 0xe000) != 0xe000) { /* vector data processing */
    *cost = vectors ? 2 : 1;
    return vectors ? VECTOR : OTHER;
  }
  if (cp != 10 && cp != 11) { /* MVE loads and stores are coprocessors 14 and 15 */
    *cost = 2;
    return VECTOR_MEMORY;
  }
  if ((hi & 0xfe00) == 0xec00 || (hi & 0xff00) == 0xed00) { /* VLDR, VSTR, VLDM, VSTM, two-register moves */
    if ((hi & 0xffe0) == 0xec40) {
      *cost = 2;
      return OTHER;
    }
    bool single = (hi & 0x0120) == 0x0100;
    unsigned count = lo & 0xff;
    *cost = single ? (cp == 11 ? 3 : 2) : 1 + count;
    return single ? (hi & 0x10 ? LOAD : STORE) : MULTIPLE;
  }
  if ((hi & 0xff00) == 0xee00 && !(lo & 0x10) && cp == 10) { /* scalar float data processing */
    unsigned opc1 = ((hi >> 4) & 0xb);
    if (opc1 == 8) {
      *cost = 14;
      return FLOAT_DIVIDE;
    }
    if (opc1 == 11 && (hi & 15) == 1 && (lo & 0xc0) == 0xc0) { /* VSQRT */
      *cost = 14;
      return FLOAT_DIVIDE;
    }
    if (opc1 <= 1 || opc1 == 9 || opc1 == 10) {
      *cost = 3;
      return FLOAT_MAC;
    }
    return OTHER;
  }
  return OTHER;
}

static bool is_vector(unsigned hi, unsigned lo) {
  if (!vectors) return false;
  if ((hi & 0xef00) == 0xef00) return true;                        /* Advanced SIMD space */
  if ((hi & 0xef00) == 0xee00) {
    unsigned cp = (lo >> 8) & 15;
    if (cp >= 14) return true;                                       /* MVE arithmetic with scalars, reductions */
    if (hi & 0x1000) return true;                                    /* 0xfe..: MVE */
  }
  return false;
}

static int wide(unsigned hi, unsigned lo, unsigned *cost) {
  *cost = 1;
  if ((hi & 0xffcf) == 0xf00f && (lo & 0xf001) == 0xc001) return LOOP_END; /* LE, LETP */
  if ((hi & 0xffc0) == 0xf000 && (lo & 0xf001) == 0xc001) return BRANCH;   /* WLS, DLS */
  if (is_vector(hi, lo)) {
    *cost = 2;
    return VECTOR;
  }
  if ((hi & 0xee00) == 0xec00 && ((lo >> 8) & 15) >= 14) { /* MVE memory */
    *cost = 2;
    return VECTOR_MEMORY;
  }
  if ((hi & 0xec00) == 0xec00) return coprocessor(hi, lo, cost);
  if ((hi & 0xfe40) == 0xe800) { /* LDM, STM */
    *cost = 1 + ones(lo);
    return MULTIPLE;
  }
  if ((hi & 0xfe40) == 0xe840) { /* LDRD, STRD, exclusive, table branch */
    if ((hi & 0xfff0) == 0xe8d0 && (lo & 0xffe0) == 0xf000) {
      *cost = 2;
      return BRANCH;
    }
    *cost = 3;
    return MULTIPLE;
  }
  if ((hi & 0xfe00) == 0xf800) { /* single loads and stores; PLD as a load */
    *cost = 2;
    return hi & 0x10 ? LOAD : STORE;
  }
  if ((hi & 0xffd0) == 0xfb90 && (lo & 0xf0) == 0xf0) {
    *cost = 12;
    return DIVIDE;
  }
  if ((hi & 0xf800) == 0xf000 && (lo & 0x8000)) {
    bool special = (lo & 0xd000) == 0x8000 && ((hi >> 7) & 7) == 7; /* MSR, hints, barriers */
    return special ? OTHER : BRANCH;
  }
  return OTHER;
}

static void enter(unsigned cpu, void *data) {
  const Block *block = data;
  if (last != NULL && last->end != block->start && !last->cheap) {
    taken++;
    cycles += 2; /* on top of the one cycle that it takes in any case */
  }
  last = block;
}

static void translate(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
  size_t count = qemu_plugin_tb_n_insns(tb);
  uint64_t total = 0, found[CLASSES] = {0};
  Block *block = calloc(1, sizeof *block);
  if (block == NULL || count == 0) abort();
  for (size_t i = 0; i < count; i++) {
    struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
    const uint8_t *bytes = qemu_plugin_insn_data(insn);
    unsigned cost, hi = (unsigned)bytes[0] | (unsigned)bytes[1] << 8;
    int class = OTHER;
    /* QEMU's own size may hold the first half of the next instruction, at which it has looked at the end of a page */
    uint64_t size = hi >= 0xe800 ? 4 : 2;
    if (size == 4)
      class = wide(hi, (unsigned)bytes[2] | (unsigned)bytes[3] << 8, &cost);
    else
      class = narrow(hi, &cost);
    found[class]++;
    total += cost;
    block->end = qemu_plugin_insn_vaddr(insn) + size;
    block->cheap = class == LOOP_END;
    if (i == 0) block->start = qemu_plugin_insn_vaddr(insn);
  }
  qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &instructions, count);
  qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &cycles, total);
  for (int c = 0; c < CLASSES; c++)
    if (found[c]) qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &executed[c], found[c]);
  qemu_plugin_register_vcpu_tb_exec_cb(tb, enter, QEMU_PLUGIN_CB_NO_REGS, block);
}

static void finish(qemu_plugin_id_t id, void *unused) {
  fprintf(stderr, "instructions: %" PRIu64 "\ncycles: %" PRIu64 "\ntaken branches: %" PRIu64 "\n", instructions, cycles,
          taken);
  for (int c = 0; c < CLASSES; c++)
    if (executed[c]) fprintf(stderr, "%s: %" PRIu64 "\n", names[c], executed[c]);
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc,
                                                               char **argv) {
  for (int i = 0; i < argc; i++) vectors |= strcmp(argv[i], "core=m55") == 0;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
  qemu_plugin_register_atexit_cb(id, finish, NULL);
  return 0;
}
