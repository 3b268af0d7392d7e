package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/leasehold-go/leasehold"
)

// keyOf returns the name of a group's key in journals and in the store, where a key is judged as a lease is.
func keyOf(group, key string) string { return group + "/" + key }

// groupOf returns the group of a key, or the name of the lease if it is none.
func groupOf(lease string) string {
	group, _, _ := strings.Cut(lease, "/")
	return group
}

func isKey(lease string) bool { return strings.Contains(lease, "/") }

// keys returns all keys of the candidate's group.
func (s spec) keys() (keys []string) {
	for i := range s.Keys {
		keys = append(keys, fmt.Sprintf("k%02d", i))
	}
	return keys
}

// share is a member of a group until ctx ends. Its work writes to the store while the key is this member's: until the
// work has returned, or the member's lease is not certainly its own any more. That is more than the time for which the
// key's session is live.
func (c *candidate) share(ctx context.Context, opts []leasehold.Option) error {
	sets := make(chan []string)
	go c.vary(ctx, sets)
	return leasehold.Spread(ctx, sets, func(s leasehold.Session, key string) error {
		b := body{
			lease: keyOf(c.Lease, key), token: s.FencingToken(), done: s.Done(),
			live: func() bool { return s.ValidFor() > 0 }, err: s.Err, pace: keyPace,
			enough: time.Second + rand.N(8*c.Duration),
		}
		if rand.IntN(2) == 0 {
			b.lag = rand.N(c.Interval / 2)
		}
		if c.Blind {
			b.live, b.lag = func() bool { return true }, c.Duration
		}
		if c.work(b) && rand.IntN(4) == 0 {
			return errors.New("chosen by chance")
		}
		return nil
	}, opts...)
}

// vary sends all keys, and now and then leaves out two of them for a moment.
func (c *candidate) vary(ctx context.Context, sets chan<- []string) {
	defer close(sets)
	all := c.keys()
	send := func(set []string, pause time.Duration) {
		select {
		case sets <- set:
		case <-ctx.Done():
		}
		sleep(ctx, pause)
	}
	for ctx.Err() == nil {
		send(all, 10*time.Second+rand.N(30*time.Second))
		i := rand.IntN(len(all) - 1)
		send(slices.Delete(slices.Clone(all), i, i+2), time.Second+rand.N(2*time.Second))
	}
}
