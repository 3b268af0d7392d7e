package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/pflag"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/internal/annotation"
)

func handoverCommand() *command {
	h := handOver{}
	return &command{
		name:  "handover",
		args:  "LEASE [FLAGS]",
		short: "Ask the holder of a lease to hand it over",
		long: `
It asks the holder to end its work and to release the lease, and waits until another holds it: the candidate that --to
names, else the standby with the highest priority, else any. The holder ends its work in its own time and leads until
then. If the candidate does not come within half of a renew interval, at most a second, any other may have the lease.

Holders that use this library honour the request. So does "leasehold run", which sends its command SIGTERM, and SIGKILL
after --grace-period. Others, such as client-go's, do not. If nobody has taken over after --timeout, the request is
withdrawn, and the exit code is 1. The exit code is also 1 if a candidate other than that of --to acquires the lease, or
the former holder does again.`,
		examples: `
# Move leadership away from a node before it is drained
leasehold handover reconciler

# To this candidate
leasehold handover reconciler --to reconciler-7d9f_3e096a27`,
		flags: func(flags *pflag.FlagSet) {
			flags.StringVar(&h.to, "to", "", "the identity of the candidate that is to hold the lease")
			flags.DurationVar(&h.timeout, "timeout", time.Minute, "how long to wait until another holds the lease")
		},
		run: func(t *tool, args []string, _ int) error {
			var err error
			if h.lease, err = oneLease(args); err != nil {
				return err
			}
			if h.timeout <= 0 {
				return usagef("--timeout %v: want a positive time", h.timeout)
			}
			if len(h.to) > annotation.MaxLength {
				return usagef("--to: want at most %d bytes", annotation.MaxLength)
			}
			return t.handOver(h)
		},
	}
}

// A handOver is a request to the holder of a lease.
type handOver struct {
	lease, to string
	timeout   time.Duration
}

// errNotTakenOver is the cause of a wait for another holder that --timeout ended.
var errNotTakenOver = errors.New("nobody has taken over")

func (t *tool) handOver(h handOver) error {
	interrupted, cancel := interruptible()
	defer cancel()
	ctx, cancel := context.WithTimeoutCause(interrupted, h.timeout, errNotTakenOver)
	defer cancel()
	began := time.Now()
	asked, err := t.askToHandOver(ctx, h)
	if err != nil {
		return err
	}
	from, is := holderOf(asked.Spec), fmt.Sprintf("%s/%s", asked.Namespace, asked.Name)
	now, err := t.awaitHolder(ctx, asked)
	if err != nil {
		if err := t.withdraw(asked); err != nil {
			t.log.Warn("the request was not withdrawn; the holder may still heed it", "error", err)
		}
		var asked stopped
		switch {
		case errors.As(err, &asked):
			return asked.exit()
		case errors.Is(err, errNotTakenOver):
			return fmt.Errorf("%s not handed over within %v: %s", is, h.timeout, now)
		}
		return err
	}
	switch {
	case now == from:
		return fmt.Errorf("%s released by %q, which has it again: nobody else stood by", is, from)
	case h.to != "" && now != h.to:
		return fmt.Errorf("%s handed over by %q, but %q has it, not %q", is, from, now, h.to)
	}
	fmt.Fprintf(t.out, "%s handed over from %q to %q in %v\n", is, from, now, time.Since(began).Round(time.Millisecond))
	return nil
}

// askToHandOver writes the request, and returns the Lease with it.
func (t *tool) askToHandOver(ctx context.Context, h handOver) (*coordinationv1.Lease, error) {
	for {
		l, err := t.get(ctx, h.lease)
		if err != nil {
			return nil, err
		}
		is := fmt.Sprintf("%s/%s", l.Namespace, l.Name)
		switch holder := holderOf(l.Spec); {
		case holder == "":
			return nil, fmt.Errorf("%s is free: nobody can hand it over", is)
		case holder == h.to:
			return nil, fmt.Errorf("%s is held by %q already", is, holder)
		case l.Spec.AcquireTime == nil:
			return nil, fmt.Errorf("%s cannot be handed over: its holder %q did not write an acquireTime", is, holder)
		}
		value := annotation.FormatHandOver(l.Spec.AcquireTime.Time, h.to)
		asked, err := t.annotate(ctx, l, &value)
		if apierrors.IsConflict(err) {
			continue // it was renewed meanwhile
		}
		return asked, err
	}
}

// withdraw removes the request, unless the term is over that it is about.
func (t *tool) withdraw(asked *coordinationv1.Lease) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for {
		l, err := t.get(ctx, asked.Name)
		if err != nil {
			return err
		}
		if l.UID != asked.UID || !l.Spec.AcquireTime.Equal(asked.Spec.AcquireTime) {
			return nil
		}
		if _, err = t.annotate(ctx, l, nil); !apierrors.IsConflict(err) {
			return err
		}
	}
}

// annotate sets the request on l, if it is unchanged; nil removes it.
func (t *tool) annotate(ctx context.Context, l *coordinationv1.Lease, request *string) (*coordinationv1.Lease, error) {
	client, err := t.cluster.client()
	if err != nil {
		return nil, err
	}
	value := "null"
	if request != nil {
		value = fmt.Sprintf("%q", *request)
	}
	body := fmt.Appendf(nil, `{"metadata":{"resourceVersion":%q,"annotations":{%q:%s}}}`,
		l.ResourceVersion, annotation.HandOver, value)
	opts := metav1.PatchOptions{FieldManager: "leasehold"}
	patched, err := client.Leases(l.Namespace).Patch(ctx, l.Name, types.MergePatchType, body, opts)
	return patched, advise(err, "patch", l.Namespace, l.Name)
}

// awaitHolder returns who holds the lease after the term that was asked to end. With an error it says what became of
// that.
func (t *tool) awaitHolder(ctx context.Context, asked *coordinationv1.Lease) (string, error) {
	opts, err := t.cluster.options()
	if err != nil {
		return "", err
	}
	state := "its holder goes on; is it a program with this library?"
	for h := range leasehold.Holders(ctx, append(opts, leasehold.WithLease(asked.Name), leasehold.WithLogger(t.log),
		leasehold.WithError(&err))...) {
		switch {
		case h.Identity == "":
			state = "it is free, and nobody stands by"
		case h.Identity == holderOf(asked.Spec) && h.AcquireTime.Equal(asked.Spec.AcquireTime.Time):
		default:
			return h.Identity, nil
		}
	}
	return state, err
}
