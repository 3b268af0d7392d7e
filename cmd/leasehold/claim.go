package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-go/leasehold"
)

func claimCommand() *command {
	var h holding
	return &command{
		name:  "claim",
		args:  "LEASE [FLAGS]",
		short: "Take a lease and hold it until interrupted",
		long: `
It waits for the lease, prints a line when it holds it, renews it, and releases it when it is interrupted. If the
lease is lost or handed over meanwhile, the exit code is 123. To keep a workload from running while you look at it,
claim its lease.`,
		examples: `
# Keep the reconciler from running
leasehold claim reconciler --identity "$USER"

# Only if the lease has no holder
leasehold claim reconciler --no-wait

# Also if its holder crashed
leasehold claim reconciler --wait 1s`,
		flags: func(flags *pflag.FlagSet) { h.flags(flags) },
		run: func(t *tool, args []string, _ int) error {
			lease, err := oneLease(args)
			if err != nil {
				return err
			}
			opts, err := h.complete(t, lease)
			if err != nil {
				return err
			}
			return t.claim(&h, opts)
		},
	}
}

func (t *tool) claim(h *holding, opts []leasehold.Option) error {
	interrupted, stop := interruptible()
	defer stop()
	ctx, cancel := context.WithCancelCause(interrupted)
	defer cancel(nil)
	// If the output blocks, the lease must still be released; if its reader goes away, the process must not end.
	out := newLogWriter(t.out)
	defer out.flush()
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)

	s, err := h.acquire(ctx, cancel, opts)
	if err != nil {
		return h.notAcquired(err)
	}
	defer s.Release()
	who := s.Holder()
	fmt.Fprintf(out, "holding %s/%s as %q, fencing token %d; interrupt to release it\n", who.Namespace, who.Name,
		who.Identity, s.FencingToken())
	<-s.Done()
	yielded := s.Err()
	if err := s.Release(); errors.Is(err, leasehold.ErrLost) {
		return exitWith(exitLost, err)
	} else if err != nil {
		return err
	}
	fmt.Fprintf(out, "released %s/%s\n", who.Namespace, who.Name)
	if errors.Is(yielded, leasehold.ErrYielded) {
		return exitWith(exitLost, yielded)
	}
	return nil
}

// acquire returns a session, or the error of an attempt that --no-wait or --wait ended. Until it returns it may cancel
// ctx by cancel.
func (h *holding) acquire(ctx context.Context, cancel context.CancelCauseFunc,
	opts []leasehold.Option) (leasehold.Session, error) {
	if h.noWait {
		return leasehold.TryAcquire(ctx, opts...)
	}
	defer h.limit(cancel)()
	return leasehold.Acquire(ctx, opts...)
}

func releaseCommand() *command {
	var identity, holder string
	var force bool
	return &command{
		name:  "release",
		args:  "LEASE [FLAGS]",
		short: "Release a lease that another process left behind",
		long: `
It frees the lease if --identity holds it, for a process that ended without doing so. It succeeds if nobody holds the
lease. Do not use it in a preStop hook: run and claim release the lease on SIGTERM, after the work has ended, and so
does a program that ends its context. If the process still runs, its work ends at once, without grace, and it competes
for the lease again.

With --force --holder=IDENTITY it takes the lease away from a holder that may still be working: a program with this
library stops when it sees the change, others at their next renewal. Prefer to stop that process with SIGTERM.`,
		examples: `
# The process that held it was killed; others need not wait until the lease expires
leasehold release reconciler --identity node-7_1d4f

# Take it away from a holder that may still be working
leasehold release reconciler --force --holder=node-7_1d4f`,
		flags: func(flags *pflag.FlagSet) {
			flags.StringVarP(&identity, "identity", "i", "",
				"the holder whose lease to release (default $LEASEHOLD_IDENTITY, which run sets)")
			flags.BoolVar(&force, "force", false, "take the lease away from the holder that --holder names")
			flags.StringVar(&holder, "holder", "", "with --force: the holder to take the lease away from")
		},
		run: func(t *tool, args []string, _ int) error {
			lease, err := oneLease(args)
			if err != nil {
				return err
			}
			who := identity
			switch {
			case force != (holder != ""):
				return usagef(
					"--force and --holder are required together: --holder names the holder that loses the lease")
			case force && identity != "":
				return usagef("--force and --identity are mutually exclusive")
			case force:
				who = holder
			case who == "":
				if who = os.Getenv("LEASEHOLD_IDENTITY"); who == "" {
					return usagef("--identity is required, or $LEASEHOLD_IDENTITY, which run sets")
				}
			}
			return t.release(lease, who, force)
		},
	}
}

func (t *tool) release(lease, who string, force bool) error {
	ctx, cancel := interruptible()
	defer cancel()
	opts, err := t.cluster.options()
	if err != nil {
		return err
	}
	opts = append(opts, leasehold.WithLease(lease), leasehold.WithIdentity(who), leasehold.WithLogger(t.log))
	if err := check(opts); err != nil {
		return usageError{err}
	}
	l, err := t.get(ctx, lease)
	if err != nil {
		return err
	}
	is := fmt.Sprintf("%s/%s", l.Namespace, l.Name)
	switch now := holderOf(l.Spec); {
	case now == "":
		fmt.Fprintf(t.out, "%s is free already\n", is)
		return nil
	case now != who:
		return fmt.Errorf("%s not released: %q holds it, not %q", is, now, who)
	}
	freed, err := leasehold.Vacate(ctx, opts...)
	if err != nil {
		return err
	}
	if !freed {
		return fmt.Errorf("%s not released: another holds it now", is)
	}
	if force {
		now := time.Now()
		fmt.Fprintf(t.logs, "Took %s away from %q, who had acquired it %s ago and renewed it %s ago. Any candidate "+
			"may acquire it now; if that holder is alive, it goes on until it sees the change.\n",
			is, who, age(l.Spec.AcquireTime, now), age(l.Spec.RenewTime, now))
	}
	fmt.Fprintf(t.out, "released %s\n", is)
	return nil
}

func (t *tool) get(ctx context.Context, lease string) (*coordinationv1.Lease, error) {
	ns, err := t.cluster.namespace()
	if err != nil {
		return nil, err
	}
	client, err := t.cluster.client()
	if err != nil {
		return nil, err
	}
	l, err := client.Leases(ns).Get(ctx, lease, metav1.GetOptions{})
	return l, advise(err, "get", ns, lease)
}

func createCommand() *command {
	var labels map[string]string
	out := output{kind: "table", text: "table"}
	return &command{
		name:  "create",
		args:  "LEASE [FLAGS]",
		short: "Create a Lease that nobody holds",
		long: `
Programs then need no right to create Leases, which RBAC cannot restrict to a name: run and claim with --create=never,
and Go programs with UseExisting.`,
		examples: `
leasehold create reconciler --labels team=storage

# Show what was created
leasehold create reconciler -o yaml`,
		flags: func(flags *pflag.FlagSet) {
			flags.StringToStringVar(&labels, "labels", nil, "labels to give the Lease, as team=storage,tier=1")
			flags.TextVarP(&out, "output", "o", out, outputHelp)
		},
		run: func(t *tool, args []string, _ int) error {
			lease, err := oneLease(args)
			if err != nil {
				return err
			}
			ctx, cancel := interruptible()
			defer cancel()
			ns, err := t.cluster.namespace()
			if err != nil {
				return err
			}
			client, err := t.cluster.client()
			if err != nil {
				return err
			}
			l, err := client.Leases(ns).Create(ctx, &coordinationv1.Lease{
				ObjectMeta: metav1.ObjectMeta{Name: lease, Namespace: ns, Labels: labels},
			}, metav1.CreateOptions{FieldManager: "leasehold", FieldValidation: metav1.FieldValidationStrict})
			if apierrors.IsAlreadyExists(err) {
				return fmt.Errorf("lease %s/%s exists already", ns, lease)
			}
			if err != nil {
				return advise(err, "create", ns, lease)
			}
			if out.kind == "table" {
				_, err := fmt.Fprintf(t.out, "%s%s created\n", resource, l.Name)
				return err
			}
			return (&printer{output: out}).print(t.out, []coordinationv1.Lease{*l}, time.Now())
		},
	}
}
