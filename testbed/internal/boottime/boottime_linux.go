// Package boottime is a clock by which processes of one machine can be compared.
package boottime

import (
	"time"

	"golang.org/x/sys/unix"
)

// Now returns the time since the machine was started by CLOCK_BOOTTIME, which is the same in all processes and goes on
// while they are stopped, or the machine sleeps.
func Now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // the kernel has had this clock since 2011
	}
	return time.Duration(ts.Nano())
}
