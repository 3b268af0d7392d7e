//go:build !unix

package main

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"time"

	"github.com/leasehold-go/leasehold"
)

// run needs process groups: here it is refused, and everything else works.

type host struct{}

func newHost(*slog.Logger) (*host, error) {
	return nil, errors.New("run needs process groups, which " + runtime.GOOS + " has not; Linux and macOS have")
}

func (*host) close()                                                      {}
func (*host) sleep(time.Duration) error                                   { return nil }
func (*host) attend(context.CancelCauseFunc, time.Duration) (stop func()) { return func() {} }

func (*runner) term(leasehold.Session) outcome { return outcome{} }

func watching() bool { return false }

func watchdog() {}

// terminalSize knows no terminal here: a timeline is shown once, at its end.
func terminalSize(int) (width, height int, ok bool) { return 0, 0, false }
