//go:build !linux

package leasehold

import "time"

// bootTime is the wall clock where there is no CLOCK_BOOTTIME. A clock set forward ends a session
// early, which is safe; one set back changes nothing, because the monotonic clock has run further.
func bootTime() time.Duration { return wallTime() }
