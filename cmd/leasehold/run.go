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
The command is started when the lease is acquired, in a process group of its own. When it ends, the tool ends with its
exit code; with --restart it campaigns for the lease again. The lease is released only when every process that the
command started is gone; those that outlive it are stopped.

When the lease was not renewed in time, the processes are sent SIGTERM, and after --stop-timeout SIGKILL: before
anybody else can have the lease. If somebody else has it already, or the Lease was deleted or edited, they are
sent SIGKILL at once. When the tool is asked to stop, by SIGTERM, SIGINT or SIGQUIT, it passes the signal on; the lease
is renewed until the command has ended, at the latest by SIGKILL after --grace-period. A second signal kills at once.
Other signals are passed on. If the tool itself is killed or does not run, the processes are killed.

The command finds in its environment LEASEHOLD_LEASE, LEASEHOLD_NAMESPACE, LEASEHOLD_IDENTITY, and
LEASEHOLD_FENCING_TOKEN: a number that grows with every new holder, by which a store can refuse late writes.

Exit codes: that of the command, 128+n if signal n ended it; 123 the lease was lost; 124 it was not acquired in time;
125 leasehold failed; 126 the command cannot be executed; 127 it was not found.`,
		examples: `
# In a Deployment: one of the replicas runs the program, the others stand by
leasehold run reconciler --restart -- ./reconciler --verbose

# From cron on several machines: one runs the job, the others skip it
leasehold run nightly-report --no-wait -- ./report.sh

# Wait half a minute for the lease, and leave the program five seconds to stop when it is lost
leasehold run migrate --wait 30s --duration 30s --stop-timeout 5s -- ./migrate`,
		flags: o.flags,
		run: func(t *tool, args []string, dash int) error {
			switch {
			case dash < 0:
				return usagef(`want "--" between the lease and the command, as in: run LEASE -- COMMAND`)
			case dash == len(args):
				return usagef(`which command? want it after "--"`)
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
	once, restart            bool
	stopTimeout, gracePeriod time.Duration

	changed func(flag string) bool
}

func (o *runOptions) flags(flags *pflag.FlagSet) {
	o.changed = flags.Changed
	flags.BoolVar(&o.once, "once", false, "end when the command does, or when the lease is lost (the default)")
	flags.BoolVar(&o.restart, "restart", false, "campaign again when the command has ended or the lease was lost, until asked to stop")
	flags.DurationVar(&o.stopTimeout, "stop-timeout", 0, "how long after SIGTERM the command is killed when the lease was not renewed (default half of what duration - renew deadline leave)")
	flags.DurationVar(&o.gracePeriod, "grace-period", 25*time.Second, "how long after a signal that asks to stop the command is killed")
	o.holding.flags(flags)
}

// complete fills in defaults and refuses times in which the command could outlive the lease.
func (o *runOptions) complete() error {
	o.timing.complete()
	room := o.duration - o.renewDeadline
	if !o.changed("stop-timeout") {
		o.stopTimeout = room / 2
	}
	switch {
	case o.once && o.restart:
		return usagef("--once and --restart: want one of them")
	case o.restart && (o.noWait || o.wait > 0):
		return usagef("--restart waits for the lease again and again: want no --wait or --no-wait with it")
	case o.gracePeriod < 0:
		return usagef("--grace-period %v: want no negative time", o.gracePeriod)
	case o.stopTimeout < 0 || o.stopTimeout >= room:
		return usagef("want 0 <= stop timeout (%v) < duration (%v) - renew deadline (%v) = %v: the lease can be somebody else's after that; "+
			"a longer --duration or an earlier --renew-deadline makes room", o.stopTimeout, o.duration, o.renewDeadline, room)
	}
	return nil
}

// A runner runs a command whenever it holds the lease.
type runner struct {
	*runOptions
	tool    *tool
	path    string // of the command's executable
	argv    []string
	options []leasehold.Option
	host    *host
}

func (t *tool) runCommand(o *runOptions, lease string, argv []string) error {
	opts, err := o.holding.complete(t, lease) // the times first: what follows depends on them
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
	r := &runner{runOptions: o, tool: t, path: path, argv: argv, options: opts, host: host}
	return r.run()
}

// lookPath finds the command as a shell does, with a shell's exit codes where it cannot.
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

// An outcome is how a term of running the command ended.
type outcome struct {
	code  int           // exit code of the command
	asked bool          // the tool was asked to stop
	lost  error         // why the lease was lost while the command ran
	err   error         // why it was not started
	ran   time.Duration // for how long
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

// run runs the command once, or again and again until the tool is asked to stop. The pauses in between grow as long as the
// command ends soon; the lease is free meanwhile, so that another may try.
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
// the lease is released. The error is why the lease was not acquired.
func (r *runner) campaign() (end outcome, err error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	if r.noWait {
		stop := r.host.attend(cancel, 0)
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
	stop := r.host.attend(cancel, r.wait)
	defer func() { stop() }()
	for s := range leasehold.Sessions(ctx, append(r.options, leasehold.WithError(&err))...) {
		stop()
		if ctx.Err() != nil {
			break
		}
		end = r.term(s)
		if end.lost == nil || end.asked || !r.restart {
			return end, nil
		}
		r.tool.log.Warn("the command was stopped; campaigning again", "cause", end.lost)
		stop = r.host.attend(cancel, 0)
	}
	if err == nil {
		err = context.Cause(ctx)
	}
	return end, err
}

// environ returns the environment of a command that runs in session s.
func environ(s leasehold.Session) []string {
	h := s.Holder()
	own := []string{
		"LEASEHOLD_LEASE=" + h.Name,
		"LEASEHOLD_NAMESPACE=" + h.Namespace,
		"LEASEHOLD_IDENTITY=" + h.Identity,
		"LEASEHOLD_FENCING_TOKEN=" + strconv.FormatUint(s.FencingToken(), 10),
	}
	inherited := slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.ContainsFunc(own, func(o string) bool { return strings.HasPrefix(o, name+"=") })
	})
	return append(inherited, own...)
}
