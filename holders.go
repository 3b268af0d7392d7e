package leasehold

import (
	"context"
	"iter"
)

// Holders watches who holds a lease without competing for it: it yields the present holder at once, then
// each change: that the lease was acquired, released, taken by another or deleted. Nobody is the zero
// Holder; a renewal is no change. A body that is slow misses holders in between, never the newest. The
// sequence ends when ctx ends or the loop is left (see WithError).
//
// It needs the right to get the Lease, and to watch it; without that it reads once every renew interval.
// A holder that does not renew any more is still the holder until somebody takes the lease.
func Holders(ctx context.Context, opts ...Option) iter.Seq[Holder] {
	return sequence(ctx, opts, func(c *campaign, yield func(Holder) bool) error {
		var last term
		for first := true; ctx.Err() == nil; {
			s := c.feed.latest()
			if now := s.holding(); s.known && (first || now != last) {
				first, last = false, now
				var h Holder
				if s.held() {
					h = c.holder(s.record)
				}
				if !yield(h) {
					return nil
				}
				continue
			}
			select {
			case <-c.feed.changed:
			case <-ctx.Done():
			}
		}
		return context.Cause(ctx)
	})
}

// holding returns the term of r, of which there is only one without a holder.
func (r record) holding() term {
	if !r.held() {
		return term{}
	}
	return r.term()
}
