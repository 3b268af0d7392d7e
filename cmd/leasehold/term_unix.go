//go:build unix

package main

import (
	"errors"
	"math"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/leasehold-go/leasehold"
)

// A supervisor binds a command to a session: it kills the command before another process can hold the lease. It acts
// first and logs afterwards.
type supervisor struct {
	*runner
	session tenure
	group   *group
	began   time.Duration // by clock(), as all times here
	trusted time.Duration // the lease is certainly ours until then, at least
	killAt  time.Duration // when to kill the processes that are left
	killWhy string        // why, for the log
	killed  bool          // the kill was logged
	asked   os.Signal     // the signal that asked to stop
	lost    error         // why the lease was lost
	cut     bool          // it was lost while the command ran
	yielded error         // why the command makes way for another holder

	watchdogLost bool // the end of the watchdog was logged
}

// A tenure is how long a command may run: that of a leasehold.Session, or what another process says of it.
type tenure interface {
	ValidFor() time.Duration
	Err() error
	Done() <-chan struct{}
}

const (
	never = math.MaxInt64
	// look is how often to look at the clock: timers stand still while the machine sleeps.
	look = 250 * time.Millisecond
	// again is how soon to repeat a kill that did not reach everything.
	again = 20 * time.Millisecond
)

// term runs the command as long as session s lasts, and returns when all its processes are gone.
func (r *runner) term(s leasehold.Session) outcome {
	env := []string{r.host.watchdog.mark} // by which it finds the command's descendants
	if r.slotted() {
		env = append(env, "LEASEHOLD_SLOT="+strconv.Itoa(s.Slot()))
	}
	if r.beats.used() {
		env = append(env, "LEASEHOLD_BEAT_FILE="+r.beats.path)
		r.beats.session.Store(&s)
	}
	return r.supervise(s, environ(s, env...), s.FencingToken())
}

// supervise runs the command with an environment for as long as s lasts.
func (r *runner) supervise(s tenure, env []string, token uint64) (end outcome) {
	sv := &supervisor{runner: r, session: s, killAt: never, began: clock()}
	if sv.check(); sv.lost != nil {
		return outcome{lost: sv.lost}
	}
	group, err := r.host.start(r.path, r.argv, env)
	if err != nil {
		r.host.watchdog.idle()
		return outcome{code: exitNotRunnable, err: err}
	}
	sv.group = group
	sv.guard()
	r.tool.log.Info("command started", "pid", group.id, "fencingToken", token)
	ran := sv.follow()
	r.host.watchdog.idle()
	if group.foreground {
		takeTerminal()
		if st := group.status; st.Signaled() && st.Signal() == syscall.SIGINT {
			sv.asked = syscall.SIGINT // Ctrl-C went to the command alone
		}
	}
	end = outcome{code: group.code(), asked: sv.asked != nil, ran: ran}
	switch {
	case sv.cut:
		end.lost = sv.lost
	case sv.asked == nil:
		end.lost = sv.yielded
	}
	return end
}

// follow returns when all processes are gone, with the time that the command itself ran.
func (sv *supervisor) follow() (ran time.Duration) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	lost := sv.session.Done()
	for ended := false; ; {
		sv.check() // before anything else: this process may have been stopped for any time
		sv.kill()
		gone := sv.group.reap()
		if !ended && sv.group.status != nil {
			ended, ran = true, clock()-sv.began
			sv.ended(ran, gone)
		}
		if gone {
			if all := clock() - sv.began; all-ran > again {
				sv.tool.log.Info("all processes of the command ended", "after", all.Round(time.Millisecond))
			}
			return ran
		}
		timer.Reset(max(again, min(look, sv.killAt-clock())))
		select {
		case <-timer.C:
		case <-sv.host.children:
			reapOrphans(sv.host.watchdog.pid(), sv.group.id)
		case <-lost:
			lost = nil
			sv.makeWay()
		case sig := <-sv.host.signals:
			sv.pass(sig)
		}
	}
}

// ended stops the processes that outlive the command, and logs that it ended.
func (sv *supervisor) ended(ran time.Duration, gone bool) {
	attrs := []any{"exitCode", sv.group.code(), "after", ran.Round(time.Millisecond)}
	if !gone {
		if left := sv.group.left(); len(left) > 0 {
			attrs = append(attrs, "waitingFor", left, "gracePeriod", sv.gracePeriod)
		}
		sv.stop(syscall.SIGTERM)
	}
	sv.tool.log.Info("command ended", attrs...)
}

// check looks whether the lease is still held, and until when it may be trusted. Once it is lost, no process may run
// any more when another can hold it.
func (sv *supervisor) check() {
	if sv.lost != nil {
		return
	}
	now := clock()
	if left := sv.session.ValidFor(); left > 0 {
		sv.trusted = now + left
		sv.guard()
		return
	}
	sv.lost = sv.session.Err()
	if sv.group == nil {
		return
	}
	sv.cut = sv.group.status == nil
	if now < sv.trusted && !workStuck(sv.lost) {
		// It was still trusted: another holds the lease already, or any candidate may acquire it.
		sv.killBy(now, "the lease is gone")
		sv.kill()
	} else {
		sv.killBy(min(now, sv.trusted)+sv.stopTimeout, "the stop timeout ended after the lease was lost")
		if now < sv.killAt {
			sv.group.signalAll(syscall.SIGTERM)
		}
	}
	sv.tool.log.Warn("the command is stopped", "cause", sv.lost)
}

// makeWay stops the command, which has its grace period, if the session ended for another holder. The lease is renewed
// meanwhile.
func (sv *supervisor) makeWay() {
	err := sv.session.Err()
	if !errors.Is(err, leasehold.ErrYielded) && !errors.Is(err, errAskedBack) || sv.group.status != nil {
		return
	}
	sv.yielded = err
	if sv.asked == nil {
		sv.stop(syscall.SIGTERM)
	}
	sv.tool.log.Info("stopping the command", "cause", err, "gracePeriod", sv.gracePeriod)
}

// guard tells the watchdog how long the command may run.
func (sv *supervisor) guard() {
	group := 0
	if sv.group != nil {
		group = sv.group.id
	}
	if err := sv.host.watchdog.guard(group, sv.trusted+sv.stopTimeout); err != nil && !sv.watchdogLost {
		sv.watchdogLost = true
		sv.tool.log.Error("the watchdog is gone: nothing stops the command if this process cannot", "error", err)
	}
}

// pass passes a signal on, and enforces one that asks to stop.
func (sv *supervisor) pass(sig os.Signal) {
	s := sig.(syscall.Signal)
	switch {
	case !stops(sig):
		sv.group.signal(s)
	case sv.asked == nil:
		sv.asked = sig
		sv.stop(s)
		sv.tool.log.Info("stopping the command", "signal", sig, "gracePeriod", sv.gracePeriod)
	default:
		sv.killBy(clock(), "asked to stop again")
		sv.kill()
	}
}

// stop sends sig to all processes, and gives them the grace period to end.
func (sv *supervisor) stop(sig syscall.Signal) {
	sv.group.signalAll(sig)
	sv.killBy(clock()+sv.gracePeriod, "the grace period ended")
}

// killBy plans to kill the processes at the given time, unless they are to be killed before.
func (sv *supervisor) killBy(at time.Duration, why string) {
	if at < sv.killAt {
		sv.killAt, sv.killWhy = at, why
	}
}

// kill kills the processes if the time has come. It may be repeated.
func (sv *supervisor) kill() {
	if clock() < sv.killAt {
		return
	}
	var names []string
	if !sv.killed {
		names = sv.group.left()
	}
	sv.group.signalAll(syscall.SIGKILL)
	if !sv.killed {
		sv.killed = true
		sv.tool.log.Warn("sent SIGKILL", "reason", sv.killWhy, "processes", names)
	}
}
