/* Tests of cmdline.c; a part of test_units.c. */
#ifndef III_TEST_CMDLINE_H
#define III_TEST_CMDLINE_H

#include <stdio.h>
#include <string.h>

#include "check.h"
#include "cmdline.h"

static void test_cmdline_mounts(void) {
    static struct cmdline c;
    char wrong[CMDLINE_VALUE], text[4096] = "iii.link=vsock:1";
    CHECK(cmdline_parse(&c, "iii.link=vsock:1 iii.mount=a:/data iii.mount=b:/a%20b/%3a%C3%a9:rw", wrong));
    CHECK(c.mount_count == 2 && !c.mounts[0].writable && c.mounts[1].writable);
    CHECK(strcmp(c.mounts[0].tag, "a") == 0 && strcmp(c.mounts[0].target, "/data") == 0);
    CHECK(strcmp(c.mounts[1].tag, "b") == 0 && strcmp(c.mounts[1].target, "/a b/:\xc3\xa9") == 0);
    static const char *const BAD[] = {
        "iii.mount=",      "iii.mount=a",      "iii.mount=:/x",    "iii.mount=a:",       "iii.mount=a:x",
        "iii.mount=a:/",   "iii.mount=a:/x/",  "iii.mount=a://x",  "iii.mount=a:/.",     "iii.mount=a:/x/..",
        "iii.mount=a:/%2", "iii.mount=a:/%zz", "iii.mount=a:/%00", "iii.mount=a:/x:ro",  "iii.mount=a:/x:rw:",
        "iii.mount=a:/%",  "iii.mount=a:/x%2", "iii.mount=a:/x:",  "iii.mount=a:/%2e%2E/x",
    };
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        snprintf(text, sizeof text, "iii.link=vsock:1 %s", BAD[i]);
        CHECK(!cmdline_parse(&c, text, wrong) && strcmp(wrong, BAD[i]) == 0);
    }
    strcpy(text, "iii.link=vsock:1");
    for (int i = 0; i < CMDLINE_MOUNTS; i++)
        sprintf(text + strlen(text), " iii.mount=t:/%d", i);
    CHECK(cmdline_parse(&c, text, wrong) && c.mount_count == CMDLINE_MOUNTS);
    CHECK(strcmp(c.mounts[CMDLINE_MOUNTS - 1].target, "/31") == 0);
    strcat(text, " iii.mount=t:/more");
    CHECK(!cmdline_parse(&c, text, wrong));
    strcpy(text, "iii.link=vsock:1 iii.mount=t:/");
    memset(text + strlen(text), 'x', CMDLINE_TARGET - 2);
    CHECK(cmdline_parse(&c, text, wrong) && strlen(c.mounts[0].target) == CMDLINE_TARGET - 1);
    text[strlen(text)] = 'x';
    CHECK(!cmdline_parse(&c, text, wrong));
}

static void test_cmdline(void) {
    struct cmdline c;
    char wrong[CMDLINE_VALUE];
    CHECK(cmdline_parse(&c, "console=ttyS0 quiet iii.link=virtio:iii.agent iii.later=1\n", wrong));
    CHECK(strcmp(c.port, "iii.agent") == 0 && c.vsock_port == 0 && strcmp(c.root, "iii-root") == 0);
    CHECK(strcmp(c.format, "squashfs") == 0 && c.data[0] == 0 && c.pids == 0);
    CHECK(cmdline_parse(&c, "iii.link=vsock:1024 iii.data=d iii.root=r iii.format=erofs iii.pids=7", wrong));
    CHECK(c.port[0] == 0 && c.vsock_port == 1024 && strcmp(c.data, "d") == 0 && strcmp(c.root, "r") == 0 && c.pids == 7);
    CHECK(!cmdline_parse(&c, "quiet", wrong) && strcmp(wrong, "iii.link=") == 0);
    CHECK(cmdline_parse(&c, "iii.link=vsock:1 iii.net=192.0.2.130/25,192.0.2.129 iii.dns=192.0.2.3,1.2.3.4", wrong));
    CHECK(strcmp(c.address, "192.0.2.130") == 0 && c.prefix == 25 && strcmp(c.gateway, "192.0.2.129") == 0);
    CHECK(strcmp(c.dns, "192.0.2.3,1.2.3.4") == 0);
    static const char *const BAD[] = {
        "iii.net=",      "iii.net=1.2.3.4",     "iii.net=1.2.3.4/8", "iii.net=1.2.3.4/33,1.2.3.5", "iii.net=/8,1.2.3.4",
        "iii.net=1.2.3.4/8,x", "iii.net=1.2.3/8,1.2.3.4", "iii.dns=",      "iii.dns=1.2.3.4,", "iii.dns=::1",
        "iii.dns=1.2.3.4,,1.2.3.4", "iii.dns=1.2.3.4,x,1.2.3.4",
        "iii.link=",   "iii.link=virtio:", "iii.link=vsock:0", "iii.link=vsock:-1", "iii.link=vsock:1x", "iii.pids=0",
        "iii.root=", "iii.link=vsock:99999999999", "iii.link=vsock:18446744073709551617",
    };
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++)
        CHECK(!cmdline_parse(&c, BAD[i], wrong) && strcmp(wrong, BAD[i]) == 0);
    test_cmdline_mounts();
    char big[300] = "iii.link=virtio:";
    memset(big + strlen(big), 'x', CMDLINE_VALUE);
    CHECK(!cmdline_parse(&c, big, wrong) && strlen(wrong) == CMDLINE_VALUE - 1);
    memset(big, 'y', 250); /* what is not ours may be of any size */
    strcpy(big + 250, " iii.link=virtio:p ");
    CHECK(cmdline_parse(&c, big, wrong) && strcmp(c.port, "p") == 0);
}

#endif
