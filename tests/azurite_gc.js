// Loaded before Azurite: it never looks for what nobody refers to any more.
//
// It does so at its start and every 10 minutes, and answers nobody meanwhile: measured were 22 s with 10,000 blobs, and 37 s with 20,000. A test
// run has that many after 10 minutes, and whichever test runs then failed. What lies in memory is gone with the process anyway.
"use strict";

const LONGEST_MS = 2 ** 31 - 1;
require("../build/azurite/node_modules/azurite/dist/src/blob/utils/constants").DEFAULT_GC_INTERVAL_MS = LONGEST_MS;
