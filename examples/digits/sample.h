/* An image of the evaluation data: the digit 5. Grey values 0 to 16, sixteenths for the network. */
#ifndef DIGITS_SAMPLE_H
#define DIGITS_SAMPLE_H

#define DIGITS_SAMPLE_LABEL 5
#define P(grey) (grey / 16.0f)
static const float digits_sample[64] = {
    P(0), P(1), P(13), P(16), P(16), P(16), P(12), P(1),
    P(0), P(6), P(16), P(14), P(12), P(11), P(5), P(0),
    P(0), P(2), P(15), P(15), P(5), P(0), P(0), P(0),
    P(0), P(0), P(8), P(14), P(15), P(1), P(0), P(0),
    P(0), P(0), P(0), P(3), P(16), P(6), P(0), P(0),
    P(0), P(0), P(0), P(3), P(16), P(5), P(0), P(0),
    P(0), P(0), P(7), P(10), P(16), P(4), P(0), P(0),
    P(0), P(0), P(15), P(16), P(10), P(0), P(0), P(0),
};
#undef P

#endif
