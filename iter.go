package leasehold

import (
	"context"
	"errors"
	"iter"
)

// Sessions campaigns for a lease: it waits until this process holds it, yields a Session, keeps the
// lease until the loop body returns, releases it, and campaigns again. It ends only when ctx ends,
// the loop is left, or it cannot begin (see WithError). It panics if the options are invalid, unless there is a
// WithError.
//
// The body runs on the caller's goroutine and is the critical section: however it ends, by return,
// break, panic or runtime.Goexit, the lease is released only then. When ctx ends, the session's
// context is cancelled and the lease is still renewed until the body returns. When the lease is
// lost, the session's context is cancelled, nothing is written any more, and the next session is
// yielded only after the body has returned.
//
// Nothing happens before the sequence is ranged over, and nothing that it started is left when the
// loop is. Ranging over it twice is two campaigns.
func Sessions(ctx context.Context, opts ...Option) iter.Seq[Session] {
	o, invalid := newOptions(ctx, opts)
	return sequence(ctx, o, invalid, func(cs campaigns, yield func(Session) bool) error {
		cs.start()
		k := newCandidates(cs)
		for {
			s, err := k.await(cs.ctx())
			if err != nil {
				return err
			}
			if more := s.lead(yield); !more {
				return nil
			}
			if lost := s.lostWhileWindingDown(); lost != nil {
				return errors.Join(context.Cause(cs.ctx()), lost)
			}
			k.pause(cs.ctx(), s)
		}
	})
}

// lead yields the session and holds the lease for exactly as long as yield runs. It returns what
// yield returns: whether the loop goes on.
func (s *session) lead(yield func(Session) bool) bool {
	defer s.finish() // break, return, panic and Goexit all come through here
	return yield(Session{s})
}

// sequence returns what walk yields in a campaign with options o that lasts as long as the loop; invalid is what is
// wrong with the options, or nil. No Lease is followed until walk starts that. The sequence ends as walk does: nil when
// the loop was left, else why the sequence ended.
func sequence[T any](
	ctx context.Context, o *options, invalid error, walk func(campaigns, func(T) bool) error,
) iter.Seq[T] {
	if invalid != nil && o.err == nil {
		panic(invalid)
	}
	return func(yield func(T) bool) {
		if invalid != nil {
			o.reportEnd(ctx, nil, invalid)
			return
		}
		cs, err := newCampaigns(ctx, o)
		if err != nil {
			o.reportEnd(ctx, nil, err)
			return
		}
		defer func() {
			defer cs.repanic()
			defer cs.close()
			o.reportEnd(cs.ctx(), cs[0], err) // nil if the body panics
		}()
		err = walk(cs, yield)
	}
}

// Chan turns a sequence into a channel, for select. It ranges over seq on a goroutine of its own, and
// asks for the next value only when the last one was received. The channel is closed when the sequence
// ends, or ctx does.
//
// A value that has a method Done() <-chan struct{}, as a Session, is held until Done closes before the
// next one is asked for. For a Session that means that its receiver must call Release when its work is
// done, and that the work must have stopped by the time the session's context ends for another reason,
// because the lease is released then. Where that is too soon, range over Sessions or use Acquire.
//
// Give ctx to the sequence too: the goroutine ends only when the sequence does.
func Chan[T any](ctx context.Context, seq iter.Seq[T]) <-chan T {
	values := make(chan T)
	go func() {
		defer close(values)
		for v := range seq {
			select {
			case values <- v:
			case <-ctx.Done():
				return
			}
			if held, ok := any(v).(interface{ Done() <-chan struct{} }); ok {
				select {
				case <-held.Done():
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return values
}
