package leasehold

import (
	"context"
	"iter"
)

// Sessions campaigns for a lease: it waits until this process holds it, yields a Session, keeps the
// lease until the loop body returns, gives it back, and campaigns again. It ends only when ctx ends,
// the loop is left, or it cannot begin (see WithError).
//
// The body runs on the caller's goroutine and is the critical section: however it ends, by return,
// break, panic or runtime.Goexit, the lease is given back only then. When ctx ends, the session's
// context is cancelled and the lease is still renewed until the body returns. When the lease is
// lost, the session's context is cancelled, nothing is written any more, and the next session is
// yielded only after the body has returned.
//
// Nothing happens before the sequence is ranged over, and nothing that it started is left when the
// loop is. Ranging over it twice is two campaigns.
func Sessions(ctx context.Context, opts ...Option) iter.Seq[Session] {
	o, invalid := newOptions(ctx, opts)
	if invalid != nil && o.err == nil {
		panic(invalid)
	}
	return func(yield func(Session) bool) {
		if invalid != nil {
			o.end(ctx, invalid)
			return
		}
		var err error
		defer func() { o.end(ctx, err) }() // nil if the body panics
		err = o.campaign(ctx, yield)
	}
}

// campaign returns nil when the loop was left, else why it ended.
func (o *options) campaign(ctx context.Context, yield func(Session) bool) error {
	c, err := newCampaign(ctx, o)
	if err != nil {
		return err
	}
	defer c.leave()
	for {
		h, err := c.await(ctx)
		if err != nil {
			return err
		}
		if more := h.lead(yield); !more {
			return nil
		}
		c.pause(ctx, h)
	}
}

// lead yields the session and holds the lease for exactly as long as yield runs. It returns what
// yield returns: whether the loop goes on.
func (h *hold) lead(yield func(Session) bool) bool {
	defer h.finish() // break, return, panic and Goexit all come through here
	return yield(Session{h})
}
