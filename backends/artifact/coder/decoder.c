/* The decoder of irc's coded weights as portable C99: what `decoder.py` says as LLVM IR, step for step.
 *
 * A coded section is a stream of bits that says what to do (`meta`) and, behind it, the words of the entropy coder.
 * Symbols are bytes. Eight rANS coders of 32 bits take turns on one stream of 16-bit words (J. Duda, "Asymmetric
 * numeral systems", arXiv:1311.2540; interleaved as in F. Giesen, "Interleaved entropy coders", arXiv:1402.3392).
 * Small networks have Huffman codes instead (at the end), which `huffman_ll.py` decodes.
 * Nothing is allocated. Damaged data gives 0, and memory outside of `out` and `scratch` is never touched.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 8, BITS = 14, ONE = 1 << BITS, CHUNK = 1 << 15, LOW = 1 << 16, SHAPES = 4, BLOCK = 64 };
enum { END, TABLE, AID, COPY, ZIGZAG32, SUM16, SUM32, PALETTE, SPREAD };
enum { IRC_DECODER_SCRATCH = ONE + 4 * 256 }; /* bytes, at a multiple of 4 */

/* Bytes first, first + step, ...: `run` of them. */
typedef struct { uint32_t first, run, step; } Shape;

typedef struct {
    const uint8_t *meta;
    uint32_t bit, bits;       /* where reading is, and its end */
    const uint8_t *word, *end;
    uint8_t *out;
    uint32_t bytes;
    uint32_t bad;
    uint32_t left;            /* rounds until the coders start anew */
    uint32_t x[LANES];
    uint8_t *symbols;         /* [ONE] symbol of each slot */
    uint32_t *ranges;         /* [256] frequency | first slot << 16 */
    uint32_t place, next;     /* blocks: of what is decoded now, and behind it */
    uint32_t count;           /* of the last operation that has one */
    uint32_t aid, colours;    /* bytes: what the next operations read of what was decoded only to make other things */
    uint32_t newest;
    Shape shapes[SHAPES];
} Decoder;

static uint32_t bits(Decoder *d, uint32_t count)
{
    uint32_t value = 0;
    for (; count; count--) {
        if (d->bit >= d->bits) { d->bad = 1; return 0; }
        value = value << 1 | (d->meta[d->bit >> 3] >> (d->bit & 7) & 1);
        d->bit++;
    }
    return value;
}

/* Exponential Golomb code of order k. */
static uint32_t number(Decoder *d, uint32_t k)
{
    uint32_t zeros = k;
    while (bits(d, 1) == 0) {
        if (++zeros > 30) { d->bad = 1; return 0; }
    }
    return (1u << zeros) - (1u << k) + bits(d, zeros);
}

static uint32_t difference(Decoder *d, uint32_t k) /* modulo 2 to the power of 32 */
{
    uint32_t n = number(d, k);
    return n >> 1 ^ (0 - (n & 1));
}

/* 2 to the power of level / 8 for levels from 0 to 119, rounded down; 0 for others. */
static uint32_t weight(uint32_t level)
{
    static const uint16_t octave[8] = {32768, 35734, 38968, 42495, 46341, 50535, 55109, 60097};
    return level < 120 ? (uint32_t)octave[level & 7] << (level >> 3) >> 15 : 0;
}

/* Frequencies of all symbols, from levels (logarithms) of some and straight lines between them. */
static void table(Decoder *d)
{
    uint32_t *w = d->ranges, i, j, sum = 0, most = 0, count = 0, slot = 0;
    memset(w, 0, 4 * 256);
    if (bits(d, 1)) {
        uint32_t mirrored = bits(d, 1), sparse = bits(d, 1), pairs = bits(d, 1), scale = bits(d, 3), k = bits(d, 2);
        uint32_t first = bits(d, 1) ? bits(d, 8) : 0, size = number(d, 4), mask = pairs ? 15 : 255;
        uint32_t code = 0, a, b = 0, from = 0, to;
        for (i = 0; !d->bad; i++) {
            a = b;
            b = sparse && i > 1 ? (2 + (i & 1)) << ((i >> 1) - 1) : i;
            b = b < size ? b : size;
            code += i ? difference(d, k) : (119 >> scale) + 1 - number(d, 0);
            to = code ? (code - 1) << scale : 120;
            if (b == a) from = to;
            for (j = i ? a + 1 : 0; j <= b; j++) {
                int32_t far = (int32_t)(b - a), rise = (int32_t)(to - from);
                uint32_t one = weight(far > 1 ? from + (uint32_t)(rise * (int32_t)(j - a) / far) : to);
                w[(first + j) & mask] = one;
                if (mirrored) w[(first - j) & mask] = one;
            }
            from = to;
            if (b == size) break;
        }
        if (pairs) { /* bytes of two independent halves */
            uint32_t half[16];
            memcpy(half, w, 4 * 16);
            for (i = 0; i < 256; i++) {
                uint32_t product = half[i >> 4] * half[i & 15];
                w[i] = product && product < 8192 ? 1 : product >> 13;
            }
        }
    } else {
        for (i = 0; i < 256; i++) w[i] = 1;
    }
    for (i = 0; i < 256; i++) {
        sum += w[i];
        count += w[i] != 0;
        most = w[i] > w[most] ? i : most;
    }
    if (count == 0) { d->bad = 1; return; }
    for (i = 0; i < 256; i++) {
        if (w[i] && i != most) {
            uint32_t share = 1 + w[i] * (ONE - count) / sum;
            memset(d->symbols + slot, (int)i, share);
            w[i] = share | slot << 16;
            slot += share;
        }
    }
    memset(d->symbols + slot, (int)most, ONE - slot); /* the most frequent one has the last slots, all that are left */
    w[most] = (ONE - slot) | slot << 16;
}

/* All coders have come back to where the encoder began. */
static void check_ends(Decoder *d)
{
    uint32_t i;
    for (i = 0; i < LANES; i++) d->bad |= d->x[i] != LOW;
}

static void start(Decoder *d)
{
    uint32_t i;
    check_ends(d);
    if (d->end - d->word < 4 * LANES) { d->bad = 1; return; }
    for (i = 0; i < LANES; i++, d->word += 4) {
        const uint8_t *p = d->word;
        d->x[i] = p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
    }
    d->left = CHUNK;
}

/* At most LANES symbols, one of each coder. */
static void some(Decoder *d, uint8_t *to, uint32_t count, uint32_t step)
{
    uint32_t i;
    if (d->left == 0) start(d);
    for (i = 0; i < count; i++, to += step) {
        uint32_t x = d->x[i], slot = x & (ONE - 1), symbol = d->symbols[slot], range = d->ranges[symbol];
        x = (range & 65535) * (x >> BITS) + slot - (range >> 16);
        if (x < LOW) {
            if (d->end - d->word < 2) { d->bad = 1; return; }
            x = x << 16 | d->word[0] | (uint32_t)d->word[1] << 8;
            d->word += 2;
        }
        d->x[i] = x;
        *to = (uint8_t)symbol;
    }
    d->left--;
}

/* Whether a word is needed is not foreseeable: no branch asks for it. */
#define STEP(i)                                                                        \
    {                                                                                  \
        uint32_t slot = x##i & (ONE - 1), symbol = symbols[slot], range = ranges[symbol], low; \
        *to = (uint8_t)symbol;                                                         \
        to += step;                                                                    \
        x##i = (range & 65535) * (x##i >> BITS) + slot - (range >> 16);                \
        low = x##i < LOW;                                                              \
        x##i = x##i << (low << 4) | ((word[0] | (uint32_t)word[1] << 8) & (0 - low));  \
        word += low << 1;                                                              \
    }

/* Rounds of LANES symbols, without checks. */
static void many(Decoder *d, uint8_t *to, uint32_t rounds, uint32_t step)
{
    const uint8_t *symbols = d->symbols, *word = d->word;
    const uint32_t *ranges = d->ranges;
    uint32_t x0 = d->x[0], x1 = d->x[1], x2 = d->x[2], x3 = d->x[3];
    uint32_t x4 = d->x[4], x5 = d->x[5], x6 = d->x[6], x7 = d->x[7];
    d->left -= rounds;
    for (; rounds; rounds--) {
        STEP(0) STEP(1) STEP(2) STEP(3) STEP(4) STEP(5) STEP(6) STEP(7)
    }
    d->word = word;
    d->x[0] = x0, d->x[1] = x1, d->x[2] = x2, d->x[3] = x3;
    d->x[4] = x4, d->x[5] = x5, d->x[6] = x6, d->x[7] = x7;
}

static void run(Decoder *d, uint8_t *to, uint32_t count, uint32_t step)
{
    while (count && !d->bad) {
        size_t fed = (size_t)(d->end - d->word) / (2 * LANES);
        uint32_t rounds = count / LANES;
        rounds = rounds < d->left ? rounds : d->left;
        rounds = rounds < fed ? rounds : (uint32_t)fed;
        if (rounds) {
            many(d, to, rounds, step);
            rounds *= LANES;
        } else {
            rounds = count < LANES ? count : LANES;
            some(d, to, rounds, step);
        }
        count -= rounds;
        to += (size_t)rounds * step;
    }
}

/* `size` bytes of the output from byte `at` on; null where they are not there. */
static uint8_t *bytes_at(Decoder *d, uint64_t at, uint64_t size)
{
    if (d->bad || at + size > d->bytes) { d->bad = 1; return NULL; }
    return d->out + at;
}

/* The bytes that an operation makes, `first` bytes behind its place. */
static uint8_t *target(Decoder *d, uint64_t first, uint64_t size)
{
    uint64_t at = (uint64_t)d->place * BLOCK + first;
    d->next = (uint32_t)((at + size + BLOCK - 1) / BLOCK);
    return bytes_at(d, at, size);
}

/* The next bytes of what was decoded only to make other things. */
static uint8_t *taken(Decoder *d, uint32_t *from, uint64_t size)
{
    uint8_t *bytes = bytes_at(d, *from, size);
    *from += (uint32_t)size;
    return bytes;
}

static void coded(Decoder *d)
{
    uint32_t form = bits(d, 2);
    Shape s;
    uint8_t *to;
    if (form == 0) {
        s = d->shapes[(d->newest - bits(d, 2)) % SHAPES];
    } else {
        s.first = form > 1 ? number(d, 1) : 0;
        s.run = number(d, 6);
        s.step = form > 1 ? number(d, 1) : 1;
        d->shapes[++d->newest % SHAPES] = s;
    }
    if (s.run == 0) { d->bad = 1; return; }
    to = target(d, s.first, 1 + (uint64_t)s.step * (s.run - 1));
    run(d, to, s.run, s.step);
}

/* In place: 0, 1, 2, 3, 4, ... -> 0, -1, 1, -2, 2, ... */
static void zigzag32(uint8_t *to, uint32_t count)
{
    for (; count; count--, to += 4) {
        uint32_t n;
        memcpy(&n, to, 4);
        n = n >> 1 ^ (0 - (n & 1));
        memcpy(to, &n, 4);
    }
}

/* In place: each number becomes the sum of all up to it. */
static void sum16(uint8_t *to, uint32_t count)
{
    uint16_t n, sum = 0;
    for (; count; count--, to += 2) {
        memcpy(&n, to, 2);
        sum = (uint16_t)(sum + n);
        memcpy(to, &sum, 2);
    }
}

static void sum32(uint8_t *to, uint32_t count)
{
    uint32_t n, sum = 0;
    for (; count; count--, to += 4) {
        memcpy(&n, to, 4);
        sum += n;
        memcpy(to, &sum, 4);
    }
}

static void palette(uint8_t *to, uint32_t count, const uint8_t *colours, uint32_t size, const uint8_t *numbers)
{
    uint32_t i;
    for (i = 0; i < count; i++, to += 4) {
        uint32_t number = numbers[i] < size ? numbers[i] : 0;
        memmove(to, colours + 4 * (size_t)number, 4);
    }
}

/* The units whose bit is set lie at the end of their place; the others are zeros. */
static void spread(uint8_t *to, uint32_t count, uint32_t unit, const uint8_t *set)
{
    const uint8_t *end = to + (size_t)count * unit, *from = end;
    uint32_t i;
    for (i = 0; i < count; i++) from -= set[i >> 3] >> (i & 7) & 1 ? unit : 0;
    for (i = 0; i < count; i++, to += unit) {
        if (set[i >> 3] >> (i & 7) & 1) {
            memmove(to, from, unit);
            from += unit;
        } else {
            memset(to, 0, unit);
        }
    }
}

/* Makes things of what was decoded before. */
static void after(Decoder *d, uint32_t op)
{
    uint32_t count, unit;
    uint8_t *to;
    if (op == AID) {
        d->colours = d->aid;
        d->aid = d->place * BLOCK;
        return;
    }
    count = bits(d, 1) ? number(d, 6) : d->count;
    d->count = count;
    unit = op == SUM16 ? 2 : op == SPREAD ? number(d, 4) : 4;
    to = target(d, 0, (uint64_t)count * unit);
    if (op == COPY) {
        const uint8_t *from = taken(d, &d->aid, (uint64_t)count * 4);
        if (!d->bad) memmove(to, from, (size_t)count * 4);
    } else if (op == PALETTE) {
        uint32_t size = number(d, 1) + 1;
        const uint8_t *colours = taken(d, &d->colours, (uint64_t)size * 4), *numbers = taken(d, &d->aid, count);
        if (!d->bad) palette(to, count, colours, size, numbers);
    } else if (op == SPREAD) {
        const uint8_t *set = taken(d, &d->aid, ((uint64_t)count + 7) / 8);
        if (!d->bad) spread(to, count, unit, set);
    } else if (!d->bad) {
        if (op == ZIGZAG32) zigzag32(to, count);
        else if (op == SUM16) sum16(to, count);
        else if (op == SUM32) sum32(to, count);
        else d->bad = 1;
    }
}

/* 1 when `out` holds the decoded bytes, 0 when the data is damaged. `data`: `meta_bytes` of bits, then words, `bytes` in
 * all. `scratch`: IRC_DECODER_SCRATCH bytes at a multiple of 4. */
int irc_decode(const uint8_t *data, uint32_t meta_bytes, uint32_t bytes, uint8_t *out, uint32_t out_bytes, void *scratch)
{
    Decoder d;
    uint32_t i, op;
    memset(&d, 0, sizeof d);
    memset(out, 0, out_bytes);
    d.meta = data;
    d.bits = 8 * meta_bytes;
    d.word = data + meta_bytes;
    d.end = data + bytes;
    d.out = out;
    d.bytes = out_bytes;
    d.ranges = (uint32_t *)scratch;
    d.symbols = (uint8_t *)scratch + 4 * 256;
    for (i = 0; i < LANES; i++) d.x[i] = LOW;
    while (!d.bad) {
        uint32_t is_coded = bits(&d, 1);
        op = is_coded ? 0 : bits(&d, 4);
        if (!is_coded && op == END) break;
        if (!is_coded && op == TABLE) {
            table(&d);
            continue;
        }
        if (bits(&d, 1) == 0) d.place = d.next;
        else if (bits(&d, 1)) d.place = d.next + difference(&d, 4);
        if (is_coded) coded(&d);
        else after(&d, op);
    }
    check_ends(&d);
    return !d.bad && d.word == d.end;
}

/* Huffman codes: a program of few bytes. Bits come highest first. `meta`: for each group of places a number that says
 * how wide its elements are, then gaps and counts; the codes: for each byte of an element a table, then the symbols of
 * all places. Where data ends too early it reads zeros, which end every list. */
enum { LONGEST = 11, SLOTS = 1 << LONGEST };

typedef struct {
    const uint8_t *data;
    uint16_t *slots;          /* [SLOTS] length of the code | symbol << 8 */
    uint32_t bytes;
    uint32_t meta, codes;     /* bits */
} Huffman;

/* The next bits at the upper end of a word; 57 of them at least. */
static uint64_t ahead(const Huffman *d, uint32_t at)
{
    uint64_t w = 0;
    uint32_t i;
    if ((at >> 3) + 8 > d->bytes) return 0;
    for (i = 0; i < 8; i++) w = w << 8 | d->data[(at >> 3) + i];
    return w << (at & 7);
}

/* Four bits say how many follow. */
static uint32_t huffman_number(const Huffman *d, uint32_t *at)
{
    uint64_t w = ahead(d, *at);
    uint32_t n = (uint32_t)(w >> 60);
    *at += 4 + n;
    return (1u << n) - 1 + (uint32_t)(w << 4 >> 1 >> (63 - n));
}

/* A canonical code: the first symbol, then how many codes have 0, 1, 2, ... bits. The symbols are the first one and,
 * by turns, those below and above it. */
static int lengths(Huffman *d, uint32_t mask, uint32_t shift)
{
    uint32_t slot = 0, rank = 0, length, n, k, first = huffman_number(d, &d->codes);
    for (length = 0; slot < SLOTS; length++) {
        n = huffman_number(d, &d->codes);
        if (length > LONGEST || slot + (n << (LONGEST - length)) > SLOTS) return 0;
        for (; n; n--, rank++) {
            uint32_t symbol = (first + (rank >> 1 ^ (0 - (rank & 1)))) & mask;
            for (k = SLOTS >> length; k; k--) d->slots[slot++] = (uint16_t)(symbol << shift | length);
        }
    }
    return 1;
}

static void symbols(Huffman *d, uint8_t *to, uint32_t count, uint32_t step)
{
    while (count) {
        uint64_t w = ahead(d, d->codes);
        uint32_t k;
        for (k = 57 / LONGEST; k && count; k--, count--, to += step) {
            uint32_t e = d->slots[w >> (64 - LONGEST)], n = e & 15;
            w <<= n;
            d->codes += n;
            *to |= (uint8_t)(e >> 8);
        }
    }
}

/* As irc_decode. `scratch`: 2 * SLOTS bytes at a multiple of 2. */
int irc_decode_huffman(
    const uint8_t *data, uint32_t meta_bytes, uint32_t bytes, uint8_t *out, uint32_t out_bytes, void *scratch)
{
    Huffman d;
    uint32_t i, sum = 0, kind, n;
    memset(out, 0, out_bytes);
    d.data = data;
    d.slots = (uint16_t *)scratch;
    d.bytes = bytes;
    d.meta = 0;
    d.codes = 8 * meta_bytes;
    if (bytes < 12) return 0;
    for (i = 0; i < bytes / 4; i++, data += 4) {
        sum = sum << 5 | sum >> 27;
        sum ^= data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 | (uint32_t)data[3] << 24;
    }
    if (sum) return 0;
    while ((kind = huffman_number(&d, &d.meta)) != 0) {
        uint32_t halves = kind & 1, step = kind >> 1 & 15, list = d.meta;
        for (n = 0; n < step + halves; n++) { /* bytes of an element, or halves of a byte */
            uint32_t place = halves ? 0 : n, count;
            d.meta = list;
            if (!lengths(&d, halves ? 15 : 255, 8 + ((n - place) << 2 & 4))) return 0;
            while ((count = huffman_number(&d, &d.meta)) != 0) {
                place += BLOCK * huffman_number(&d, &d.meta);
                if (place + (count - 1) * step >= out_bytes) return 0;
                symbols(&d, out + place, count, step);
            }
        }
    }
    return (d.codes >> 3) + 8 <= bytes;
}
