package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/spf13/pflag"

	"github.com/leasehold-go/leasehold"
)

func runCommand() *command {
	var o runOptions
	return &command{
		name:  "run",
		args:  "LEASE [FLAGS] -- COMMAND [ARGUMENT...]",
		short: "Run a command only while holding a lease",
		long: `
The command starts when the lease is acquired, in a process group of its own. When it ends, the tool exits with its
exit code; with --restart it campaigns for the lease again. The lease is released only when every process that the
command started has ended; those that outlive it are stopped.

If the lease is not renewed in time, the processes receive SIGTERM, and SIGKILL after --stop-timeout, before another
process can hold the lease. If another holds it already, or the Lease was deleted or edited, they receive SIGKILL at
once. SIGTERM, SIGINT and SIGQUIT ask the tool to stop: it passes the signal on, renews the lease until the command
has ended, sends SIGKILL after --grace-period or on a second signal, and releases the lease. A preStop hook is not
needed. Other signals are passed on. In the same way the command ends, by SIGTERM, if "leasehold handover" asks for that
or, with --yield, if a candidate of higher --priority stands by.

With --beat-file=FILE --beat=1m the command has to change that file at least once a minute, as by touch(1). If it does
not, its work is stuck, and the lease is lost: the processes receive SIGTERM, and SIGKILL after --stop-timeout, and
another process can hold the lease when it expires. The first minute begins with the command. A file that does not exist
yet, or cannot be read, is one that does not change; clocks do not matter.

On Linux this covers all descendants of the command, also those that left its process group, as with "set -m",
timeout(1) or setsid; elsewhere it covers the process group. A second process, the watchdog, kills them if the tool is
killed, or is stopped until the lease expires. It cannot kill processes of another user. If the tool was killed by
SIGKILL, it cannot find a daemon whose environment lacks LEASEHOLD_RUN_ID. Nothing acts if the tool and its watchdog
are both killed or stopped. Work that the command leaves to a service, as systemd-run and docker run do, is not a
descendant.

The environment of the command has LEASEHOLD_LEASE, LEASEHOLD_NAMESPACE, LEASEHOLD_IDENTITY, and
LEASEHOLD_FENCING_TOKEN: a number that grows with every new holder, by which a store can refuse late writes. With
--slots it has LEASEHOLD_SLOT, from 0: no two commands that run have the same. With --beat-file it has
LEASEHOLD_BEAT_FILE.

With --no-wait the tool skips the command if the lease has a holder, even one that crashed: a new process has to see a
lease unchanged for its duration before it may acquire it. With --wait it waits for the given time and, if the holder
stopped renewing the lease, until the lease expires. A cron job should use --wait.

Exit codes: that of the command, 128+n if signal n ended it, or the tool while it waited; 123 the lease was lost or
handed over; 124 it was not acquired, or --held-exit-code if another holds it; 125 leasehold failed or wrong
usage; 126 the command cannot be executed; 127 it was not found.`,
		examples: `
# In a Deployment: one of the replicas runs the program, the others stand by
leasehold run reconciler --restart -- ./reconciler --verbose

# From cron on several machines: one runs the job, the others skip it and succeed
leasehold run nightly-report --wait 1s --held-exit-code 0 -- ./report.sh

# At most three at once over all machines, each with a number of its own
leasehold run importer --slots 3 -- sh -c './import --worker $LEASEHOLD_SLOT'

# A program that is stuck is stopped, and another process has the lease
leasehold run consumer --beat-file /tmp/beat --beat 1m -- sh -c 'while ./consume-one; do touch /tmp/beat; done'

# Wait half a minute for the lease, and give the program five seconds to stop when it is lost
leasehold run migrate --wait 30s --duration 30s --stop-timeout 5s -- ./migrate`,
		flags: o.flags,
		run: func(t *tool, args []string, dash int) error {
			switch {
			case dash < 0:
				return usagef(`missing "--" before COMMAND, as in: run LEASE -- COMMAND`)
			case dash == len(args):
				return usagef(`missing COMMAND after "--"`)
			}
			lease, err := oneLease(args[:dash])
			if err != nil {
				return err
			}
			return t.runCommand(&o, lease, args[dash:])
		},
	}
}

type runOptions struct {
	holding
	once, restart bool
	stopping
	beats beatFile
}

// stopping holds the times that processes have to end.
type stopping struct {
	stopTimeout, gracePeriod time.Duration

	changed func(flag string) bool
}

func (s *stopping) flags(flags *pflag.FlagSet) {
	s.changed = flags.Changed
	flags.DurationVar(&s.stopTimeout, "stop-timeout", 0,
		"time from SIGTERM to SIGKILL when the lease was not renewed (default half of duration - renew deadline)")
	flags.DurationVar(&s.gracePeriod, "grace-period", 25*time.Second, "time from a signal that asks to stop to SIGKILL")
}

// complete sets the defaults, and refuses times with which a command could outlive the lease.
func (s *stopping) complete(t timing) error {
	room := t.duration - t.renewDeadline
	if !s.changed("stop-timeout") {
		s.stopTimeout = room / 2
	}
	switch {
	case s.gracePeriod < 0:
		return usagef("--grace-period %v: want 0s or more", s.gracePeriod)
	case s.stopTimeout < 0 || s.stopTimeout >= room:
		return usagef("want 0 <= stop timeout (%v) < duration (%v) - renew deadline (%v) = %v, "+
			"after which another can hold the lease; a longer --duration or an earlier --renew-deadline makes room",
			s.stopTimeout, t.duration, t.renewDeadline, room)
	}
	return nil
}

func (o *runOptions) flags(flags *pflag.FlagSet) {
	flags.BoolVar(&o.once, "once", false, "exit when the command ends or the lease is lost (the default)")
	flags.BoolVar(&o.restart, "restart", false,
		"campaign again when the command ends or the lease is lost, until asked to stop")
	o.stopping.flags(flags)
	o.beats.flags(flags)
	o.holding.flags(flags)
}

// complete sets the defaults, and refuses what excludes each other.
func (o *runOptions) complete() error {
	o.timing.complete()
	switch {
	case o.once && o.restart:
		return usagef("--once and --restart are mutually exclusive")
	case o.restart && (o.noWait || o.wait > 0):
		return usagef("--restart waits for the lease again and again: it excludes --wait and --no-wait")
	}
	if err := o.beats.check(); err != nil {
		return err
	}
	return o.stopping.complete(o.timing)
}

// A runner runs a command while it holds the lease.
type runner struct {
	*runOptions
	tool    *tool
	path    string // of the command's executable
	argv    []string
	options []leasehold.Option
	host    *host
}

func (t *tool) runCommand(o *runOptions, lease string, argv []string) error {
	opts, err := o.holding.complete(t, lease) // first: it completes the times that follow
	if err != nil {
		return err
	}
	if err := o.complete(); err != nil {
		return err
	}
	path, err := lookPath(argv[0])
	if err != nil {
		return err
	}
	host, err := newHost(t.log)
	if err != nil {
		return err
	}
	defer host.close()
	if o.beats.used() {
		opts = append(opts, leasehold.WithBeat(o.beats.within))
		stop := make(chan struct{})
		defer close(stop)
		go o.beats.follow(stop)
	}
	r := &runner{runOptions: o, tool: t, path: path, argv: argv, options: opts, host: host}
	return r.run()
}

// lookPath finds the command as a shell does. Its errors have a shell's exit codes.
func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	switch {
	case err == nil:
		return path, nil
	case errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist):
		return "", exitWith(exitNotFound, err)
	}
	return "", exitWith(exitNotRunnable, err)
}

// An outcome is how one term of running the command ended.
type outcome struct {
	code  int           // exit code of the command
	asked bool          // the tool was asked to stop
	lost  error         // why the lease was lost while the command ran
	err   error         // why the command did not start
	ran   time.Duration // how long the command ran
}

func (e outcome) exit() error {
	switch {
	case e.err != nil && errors.Is(e.err, fs.ErrNotExist):
		return exitWith(exitNotFound, e.err)
	case e.err != nil:
		return exitWith(exitNotRunnable, e.err)
	case e.lost != nil:
		return exitWith(exitLost, fmt.Errorf("the command was stopped: %w", e.lost))
	case e.code != 0:
		return exitWith(e.code, nil)
	}
	return nil
}

// run runs the command once, or with --restart until the tool is asked to stop. The pauses in between grow as long as
// the command ends soon; the lease is free meanwhile, so that another may try.
func (r *runner) run() error {
	pauses := backoff.NewExponentialBackOff(backoff.WithInitialInterval(time.Second), backoff.WithMultiplier(2),
		backoff.WithRandomizationFactor(0.2), backoff.WithMaxInterval(time.Minute), backoff.WithMaxElapsedTime(0))
	for {
		end, err := r.campaign()
		if err != nil {
			return r.notAcquired(err)
		}
		if !r.restart || end.asked {
			return end.exit()
		}
		if end.ran > 10*time.Second {
			pauses.Reset()
		}
		pause := pauses.NextBackOff()
		log := r.tool.log
		if end.err != nil {
			log = log.With("error", end.err)
		}
		log.Info("the command is restarted after a pause", "exitCode", end.code, "pause", pause.Round(time.Millisecond))
		if err := r.host.sleep(pause); err != nil {
			return r.notAcquired(err)
		}
	}
}

// campaign runs the command when the lease is acquired, and with --restart again after each loss of it. It returns once
// the lease is released. The error is the reason why the lease was not acquired.
func (r *runner) campaign() (end outcome, err error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	if r.noWait {
		stop := r.host.attend(cancel)
		s, err := leasehold.TryAcquire(ctx, r.options...)
		stop()
		if err != nil {
			return end, err
		}
		defer s.Release() // logs its failure
		if ctx.Err() != nil {
			return end, context.Cause(ctx)
		}
		return r.term(s), nil
	}
	stop, unlimited := r.host.attend(cancel), r.limit(cancel)
	defer func() { stop(); unlimited() }()
	for s := range leasehold.Sessions(ctx, append(r.options, leasehold.WithError(&err))...) {
		stop()
		unlimited()
		if ctx.Err() != nil {
			break
		}
		end = r.term(s)
		if end.lost == nil || end.asked || !r.restart {
			return end, nil
		}
		r.tool.log.Warn("the command was stopped; campaigning again", "cause", end.lost)
		stop = r.host.attend(cancel)
	}
	if err == nil {
		err = context.Cause(ctx)
	}
	return end, err
}

// environ returns the environment of a command that runs in session s, with more in it.
func environ(s leasehold.Session, more ...string) []string {
	h := s.Holder()
	own := append(more,
		"LEASEHOLD_LEASE="+h.Name,
		"LEASEHOLD_NAMESPACE="+h.Namespace,
		"LEASEHOLD_IDENTITY="+h.Identity,
		"LEASEHOLD_FENCING_TOKEN="+strconv.FormatUint(s.FencingToken(), 10),
	)
	inherited := slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.ContainsFunc(own, func(o string) bool { return strings.HasPrefix(o, name+"=") })
	})
	return append(inherited, own...)
}
