#ifndef III_SIGNALS_H
#define III_SIGNALS_H

/* Every signal to its default action, none blocked: whoever started this process may have left it otherwise. */
void signals_reset(void);

#endif
