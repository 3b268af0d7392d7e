//go:build !linux

// Package boottime is a clock by which processes of one machine can be compared.
package boottime

import "time"

// Now is the wall clock, because there is none that all processes share and that nobody sets.
func Now() time.Duration { return time.Duration(time.Now().UnixNano()) }
