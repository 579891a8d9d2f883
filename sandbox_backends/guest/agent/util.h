/* Memory that is there or ends the agent, and words for the console. */
#ifndef III_UTIL_H
#define III_UTIL_H

#include <stddef.h>

void *must_alloc(size_t size);              /* zeroed */
void *must_realloc(void *old, size_t size); /* size 0 is taken as 1 */

/* One line on stderr. */
__attribute__((format(printf, 1, 2))) void say(const char *format, ...);

#endif
