//go:build unix

package main

import (
	"math"
	"os"
	"syscall"
	"time"

	"github.com/leasehold-go/leasehold"
)

// A leash is what holds a command to a session: it kills the command before the lease can be somebody else's.
type leash struct {
	*runner
	session leasehold.Session
	group   *group
	trusted time.Duration // until when, by clock(), the lease may be trusted; at least so
	killAt  time.Duration // when to kill what is left
	asked   os.Signal     // to stop
	lost    error         // why the lease was
	cut     bool          // it was while the command ran
	barked  bool          // the watchdog's end was logged
}

const (
	never = math.MaxInt64
	// look is how often to look at the clock: timers stand still while the machine sleeps.
	look = 250 * time.Millisecond
	// again is how soon a kill is repeated that did not reach everything.
	again = 20 * time.Millisecond
)

// term runs the command for as long as session s lasts, and returns when all its processes are gone.
func (r *runner) term(s leasehold.Session) (end outcome) {
	began := clock()
	l := &leash{runner: r, session: s, killAt: never}
	if l.check(); l.lost != nil {
		return outcome{lost: l.lost}
	}
	group, err := r.host.start(r.path, r.argv, environ(s))
	if err != nil {
		return outcome{code: exitNotRunnable, err: err}
	}
	l.group = group
	l.guard()
	r.tool.log.Info("command started", "pid", group.id, "fencingToken", s.FencingToken())
	l.follow()
	r.host.dog.idle()
	if group.foreground {
		takeTerminal()
		if st := group.status; st.Signaled() && st.Signal() == syscall.SIGINT {
			l.asked = syscall.SIGINT // Ctrl-C went to the command alone
		}
	}
	end = outcome{code: group.code(), asked: l.asked != nil, ran: clock() - began}
	if l.cut {
		end.lost = l.lost
	}
	r.tool.log.Info("command ended", "exitCode", end.code, "after", end.ran.Round(time.Millisecond))
	return end
}

// follow returns when all processes are gone.
func (l *leash) follow() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	lost := l.session.Done()
	for ended := false; ; {
		l.check() // before anything else: this process may have been stopped for any time
		if clock() >= l.killAt {
			l.group.signalAll(syscall.SIGKILL)
		}
		if l.group.reap() {
			return
		}
		if !ended && l.group.status != nil {
			ended = true
			l.tool.log.Debug("command ended, processes that it started go on", "exitCode", l.group.code())
			l.stop(syscall.SIGTERM, l.gracePeriod)
		}
		timer.Reset(max(again, min(look, l.killAt-clock())))
		select {
		case <-timer.C:
		case <-l.host.children:
			reapStrays(l.host.dog.pid(), l.group.id)
		case <-lost:
			lost = nil
		case sig := <-l.host.signals:
			l.pass(sig)
		}
	}
}

// check looks whether the lease is still held and until when it may be trusted. When it is lost, nothing may run any
// more once it can be somebody else's.
func (l *leash) check() {
	if l.lost != nil {
		return
	}
	now := clock()
	if left := l.session.ValidFor(); left > 0 {
		l.trusted = now + left
		l.guard()
		return
	}
	l.lost = l.session.Err()
	if l.group == nil {
		return
	}
	l.cut = l.group.status == nil
	l.tool.log.Warn("the command is stopped", "cause", l.lost)
	if now < l.trusted {
		// Trust did not run out: the lease is somebody else's already, or free for anybody.
		l.killAt = now
		return
	}
	l.killAt = min(l.killAt, l.trusted+l.stopTimeout)
	if now < l.killAt {
		l.group.signalAll(syscall.SIGTERM)
	}
}

// guard tells the watchdog how long the command may run.
func (l *leash) guard() {
	if l.group == nil {
		return
	}
	if err := l.host.dog.guard(l.group.id, l.trusted+l.stopTimeout); err != nil && !l.barked {
		l.barked = true
		l.tool.log.Error("the watchdog is gone: nobody stops the command if this process cannot", "error", err)
	}
}

// pass passes a signal on, and sees that one that asks to stop is heeded.
func (l *leash) pass(sig os.Signal) {
	s := sig.(syscall.Signal)
	switch {
	case !stops(sig):
		l.group.signal(s)
	case l.asked == nil:
		l.asked = sig
		l.tool.log.Info("stopping the command", "signal", sig, "gracePeriod", l.gracePeriod)
		l.stop(s, l.gracePeriod)
	default:
		l.tool.log.Info("killing the command: asked to stop again", "signal", sig)
		l.killAt = clock()
	}
}

// stop sends sig, and leaves the processes some time to end.
func (l *leash) stop(sig syscall.Signal, grace time.Duration) {
	l.group.signalAll(sig)
	l.killAt = min(l.killAt, clock()+grace)
}
