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

// run and spread need process groups. Without them both are refused; the other commands work.

type host struct{}

func newHost(*slog.Logger) (*host, error) {
	return nil, errors.New("run and spread need process groups, which " + runtime.GOOS +
		" does not have; Linux, macOS and BSD have them")
}

func (*host) close()                                       {}
func (*host) sleep(time.Duration) error                    { return nil }
func (*host) attend(context.CancelCauseFunc) (stop func()) { return func() {} }

func (*runner) term(leasehold.Session) outcome { return outcome{} }

func isWatchdog() bool { return false }

func isKeeper() bool { return false }

func keeperMain() {}

func (t *tool) spread(*spreadOptions, string, []string, []string) error {
	_, err := newHost(t.log)
	return err
}

func watchdogMain() {}

// terminalSize finds no terminal: a timeline is shown once, at its end.
func terminalSize(int) (width, height int, ok bool) { return 0, 0, false }
