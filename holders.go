package leasehold

import (
	"context"
	"iter"
	"time"
)

// Holders watches who holds a lease without competing for it: it yields the present holder at once, then
// each change: that the lease was acquired, released, taken by another, deleted, that it expired because its holder
// did not renew it, or that its address changed. Nobody is the zero Holder; a renewal is no change. A holder that
// renews after all is yielded again. A body that is slow misses holders in between, never the newest. The sequence
// ends when ctx ends or the loop is left (see WithError). It panics if the options are invalid, unless there is a
// WithError.
//
// With WithSlots it yields the present holder of each slot, and then each change of any. A slot that nobody holds is a
// Holder that has only Namespace and Name.
//
// It needs the right to get the Lease, and to watch it; without that it reads once every renew interval.
func Holders(ctx context.Context, opts ...Option) iter.Seq[Holder] {
	o, invalid := newOptions(ctx, opts)
	return sequence(ctx, o, invalid, func(cs campaigns, yield func(Holder) bool) error {
		cs.start()
		var watches []*holderWatch
		for _, c := range cs {
			watches = append(watches, &holderWatch{campaign: c})
		}
		timer := time.NewTimer(0)
		defer timer.Stop()
		for cs.ctx().Err() == nil {
			wake := maxDuration
			for _, w := range watches {
				h, changed, wait := w.next()
				if changed && !yield(h) {
					return nil
				}
				if changed {
					wait = 0 // the body may have been slow
				}
				wake = min(wake, wait)
			}
			if wake <= 0 {
				continue
			}
			timer.Reset(cs[0].clock.wait(wake))
			select {
			case <-timer.C:
			case <-cs.news():
			case <-cs.ctx().Done():
			}
		}
		return context.Cause(cs.ctx())
	})
}

// A holderWatch is what Holders has yielded.
type holderWatch struct {
	campaign *campaign
	yielded  bool
	last     term      // of the holder that was yielded last; zero for nobody
	address  string    // of the same
	since    time.Time // when the holder was last seen to do something
	checkAt  time.Time // when to check whether the watch missed something; zero when that was done
}

// next returns the holder to yield, if it is another than the last one, else for how long nothing changes by itself.
func (w *holderWatch) next() (h Holder, changed bool, wait time.Duration) {
	c := w.campaign
	o := c.store.latest()
	if !o.known {
		return Holder{}, false, maxDuration
	}
	left := o.expiresAt().Sub(c.clock.now().mono)
	var now term
	if o.held() && left > 0 {
		now, wait = o.term(), w.untilCheck(o, left)
		h = c.holder(o.record, wallTimeAt(c.clock, o.expiresAt()))
	} else {
		wait = maxDuration
		if c.options.slots > 0 {
			h.Namespace, h.Name = c.lease.namespace, c.lease.name
		}
	}
	changed = !w.yielded || now != w.last || h.Address != w.address
	w.yielded, w.last, w.address = true, now, h.Address
	return h, changed, wait
}

// untilCheck returns how long to wait for news of the holder in o, whose lease expires in left. The watch is checked
// once on the way, when the holder would have renewed: it may have fallen silent.
func (w *holderWatch) untilCheck(o observation, left time.Duration) time.Duration {
	c := w.campaign
	if w.since != o.since {
		w.since, w.checkAt = o.since, c.renewalOverdueAt(o)
	}
	if w.checkAt.IsZero() {
		return left
	}
	if wait := w.checkAt.Sub(c.clock.now().mono); wait > 0 {
		return min(wait, left)
	}
	w.checkAt = time.Time{}
	c.reflector.requestCheck()
	return left
}
