#include "sums.h"

void to_hex(uint32_t value, char text[9])
{
    for (int digit = 7; digit >= 0; digit--, value >>= 4)
        text[digit] = "0123456789abcdef"[value & 15];
    text[8] = 0;
}
