package leasehold

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/cenkalti/backoff/v4"
	"golang.org/x/sync/errgroup"

	"github.com/leasehold-go/leasehold/internal/shards"
)

// Keys returns a set of keys that does not change, for Spread.
func Keys[K ~string](keys ...K) <-chan []K {
	sets := make(chan []K, 1)
	sets <- slices.Clone(keys)
	close(sets)
	return sets
}

// Spread shares out keys among the processes that call it with the same group, which WithLease names. It runs work for
// each key of this process's share, on a goroutine of its own and in a session of its own, until ctx ends. At most one
// session of a key is live at any instant, in all processes together, and each process renews one Lease however many
// keys it owns.
//
// The session's context ends when the key is given to another process (ErrMoved), when this process's own Lease is lost
// (ErrLost), or with ctx; the work must return then. When it has returned the key is given on. Work that returns nil
// earlier, or an error, gives its key back, and it is given out again after a pause, which grows with each error. An
// error that is wrapped by backoff.Permanent ends Spread: everything is given back, and Spread returns the error.
//
// Each set that keys delivers replaces the one before. A key goes only to a process whose set has it. The channel's end
// makes the last set final. Keys have 1 to 256 bytes of UTF-8.
//
// Spread returns context.Cause(ctx), the permanent error of work, or the reason why it could not run: invalid options,
// no usable client configuration, no keys, or a Lease with the name of the group that is not a group's.
func Spread[K ~string](ctx context.Context, keys <-chan []K, work func(Session, K) error, opts ...Option) (err error) {
	return inGroup(ctx, opts, func(c *campaign, name string) error {
		if work == nil {
			return errors.New("leasehold: Spread: the work is nil")
		}
		if keys == nil {
			return errors.New("leasehold: Spread: the channel of keys is nil: Keys makes one")
		}
		first, err := nextKeys(c.ctx, keys)
		if err != nil {
			return err
		}
		w := &spreading{work: func(s Session, key string) error { return work(s, K(key)) }}
		g := newGroup(c, name, 0)
		g.worker, w.group = w, g
		defer c.options.monitor.openGroup(g)()
		receiving, cancel := context.WithCancel(c.ctx)
		var receiver errgroup.Group
		receiver.Go(func() error { receive(receiving, g, first, keys); return nil })
		defer receiver.Wait()
		defer cancel()
		defer w.running.Wait()
		c.start()
		return g.run()
	})
}

var errNoKeys = errors.New("leasehold: Spread: the channel of keys ended before there was a set")

// receive makes the group know set, and then each that keys delivers, until ctx ends. It tries to publish one until the
// next is delivered.
func receive[K ~string](ctx context.Context, g *group, set []string, keys <-chan []K) {
	for more := true; more; {
		retrying, replace := context.WithCancel(ctx)
		var publishing errgroup.Group
		publishing.Go(func() error { g.know(ctx, retrying, set); return nil })
		next, err := nextKeys(ctx, keys)
		for err != nil && err != errNoKeys && ctx.Err() == nil {
			g.campaign.log.error("the keys are not changed", "group", g.client.group, "error", err)
			next, err = nextKeys(ctx, keys)
		}
		if more = err == nil; more {
			replace()
		}
		publishing.Wait()
		replace()
		set = next
	}
}

// nextKeys returns the next set of keys, sorted.
func nextKeys[K ~string](ctx context.Context, keys <-chan []K) ([]string, error) {
	select {
	case set, open := <-keys:
		if !open {
			return nil, errNoKeys
		}
		names := make([]string, len(set))
		for i, key := range set {
			names[i] = string(key)
		}
		sorted, err := shards.SortKeys(names)
		if err != nil {
			return nil, fmt.Errorf("leasehold: Spread: %w", err)
		}
		return sorted, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// inGroup runs member in a campaign for a member's Lease.
func inGroup(ctx context.Context, opts []Option, member func(c *campaign, group string) error) (err error) {
	o, invalid := newGroupOptions(ctx, opts)
	if o.err != nil {
		defer func() { *o.err = err }()
	}
	if invalid != nil {
		return invalid
	}
	name := o.name
	o.name, o.group.name = memberName(name), name
	cs, err := newCampaigns(ctx, o)
	if err != nil {
		return err
	}
	defer cs.repanic()
	defer cs.close()
	return member(cs[0], name)
}

// memberName returns the name of a new member's Lease.
func memberName(group string) string {
	identity := newIdentity() // it ends with a UUID
	return group + "-m-" + identity[len(identity)-uniqueLength:]
}

// uniqueLength is how many characters of a member's name tell it from others.
const uniqueLength = 12

// isMemberName reports whether memberName can have returned name. A group's name may itself begin with another's.
func isMemberName(name, group string) bool {
	unique, ok := strings.CutPrefix(name, group+"-m-")
	return ok && len(unique) == uniqueLength && !strings.Contains(unique, "-")
}

// A spreading runs the work of Spread.
type spreading struct {
	group   *group
	work    func(Session, string) error
	running sync.WaitGroup
}

func (w *spreading) start(s *keySession) {
	w.running.Go(func() {
		err := errExited
		defer func() {
			if r := recover(); r != nil {
				w.group.campaign.user.failWith(r)
				err = errExited
			}
			w.ended(s, err)
		}()
		err = w.work(Session{s}, s.key)
	})
}

var errExited = errors.New("the work panicked or exited its goroutine")

func (*spreading) stop(*keySession) {} // the work sees that its context has ended

// ended says that the work of s returned err.
func (w *spreading) ended(s *keySession, err error) {
	g := w.group
	failed := err != nil && s.ctx.Context.Err() == nil
	var permanent *backoff.PermanentError
	switch {
	case failed && errors.As(err, &permanent):
		g.fail(permanent.Err)
	case failed:
		g.campaign.log.warn("the work of a key failed; giving the key back",
			"group", g.client.group, "key", s.key, "error", err)
	}
	g.returned(s, failed)
}
