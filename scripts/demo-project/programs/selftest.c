/* Checks every sum against its published value. */
#include <stdio.h>
#include <string.h>

#include "sums.h"
#include "version.h"

static int failures;

static void expect(const char *name, uint32_t expected, uint32_t got)
{
    char text[9];
    to_hex(got, text);
    printf("%s %s %s\n", expected == got ? "ok    " : "FAILED", text, name);
    failures += expected != got;
}

int main(void)
{
    const char *digits = "123456789";
    printf("sums %s\n", VERSION);
    expect("crc32", 0xcbf43926, crc32(0, digits, strlen(digits)));
    expect("adler32", 0x091e01de, adler32(1, digits, strlen(digits)));
    expect("fletcher16", 0x1ede, fletcher16(0, digits, strlen(digits)));
    expect("bsd", 0xd16f, bsd(0, digits, strlen(digits)));
    return failures != 0;
}
