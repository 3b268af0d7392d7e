package leasehold

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/leasehold-go/leasehold/internal/shards"
)

// groupOptions are the options of members of a group alone.
type groupOptions struct {
	member bool   // the options are for a group
	name   string // of the group, where the lease is a member's own
	weight int
	moves  int           // 0 for no limit
	settle time.Duration // -1 for the default

	given []string // names of those that were given
}

// WithWeight says how large this member's share of a group's keys is, compared with that of others: 1 to 1,000; 1 by
// default. It is for Spread and Join.
func WithWeight(n int) Option {
	return func(o *options) {
		o.group.weight = n
		o.group.given = append(o.group.given, "WithWeight")
		if n < 1 || n > shards.MaxWeight {
			o.fault("WithWeight: want 1 to %d, not %d", shards.MaxWeight, n)
		}
	}
}

// WithMoves says how many keys of a group may be moving from one member to another at once, at least 1. By default as
// many as are surplus move. It is for Spread and Join; the setting of the member that assigns the keys counts.
func WithMoves(n int) Option {
	return func(o *options) {
		o.group.moves = n
		o.group.given = append(o.group.given, "WithMoves")
		if n < 1 {
			o.fault("WithMoves: want at least 1, not %d", n)
		}
	}
}

// WithSettle says for how long a new member of a group waits before keys that others own move to it, so that a rollout
// moves each key about once: at least 0. The default is the renew interval; during a rollout it is one and a half times
// the last step of the rollout, at most twice the duration. Keys that nobody owns never wait. It is for Spread and
// Join; the setting of the member that assigns the keys counts.
func WithSettle(d time.Duration) Option {
	return func(o *options) {
		o.group.settle = d
		o.group.given = append(o.group.given, "WithSettle")
		if d < 0 {
			o.fault("WithSettle: want at least 0, not %v", d)
		}
	}
}

// newGroupOptions returns the options of a member of a group, whose name is that of the lease, and all that is wrong
// with them.
func newGroupOptions(ctx context.Context, opts []Option) (*options, error) {
	return newOptionsOf(ctx, opts, groupOptions{member: true, weight: 1, settle: -1})
}

// validateGroup finds what is wrong with the options of a group, or with such options where there is none.
func (o *options) validateGroup() {
	if !o.group.member {
		for _, name := range o.group.given {
			o.fault("%s: it is for Spread and Join", name)
		}
		return
	}
	if wrong := validation.IsValidLabelValue(o.name); wrong != nil {
		o.fault("group %q: its name is the value of a label: %s", o.name, wrong[0])
	}
	for _, refused := range []struct {
		given bool
		name  string
	}{
		{o.createMode != AutoCreate, "WithCreateMode"},
		{o.reclaim, "WithReclaim"},
		{o.deleteOnRelease, "WithDeleteOnRelease"},
		{o.beat != 0, "WithBeat"},
		{o.overrun != nil, "WithOverrun"},
		{o.slots != 0, "WithSlots"},
		{o.prioritized, "WithPriority"},
		{o.yield, "WithYield"},
		{o.advertise != "", "WithAdvertise"},
	} {
		if refused.given {
			o.fault("%s: it is for leases, not for groups", refused.name)
		}
	}
}

// maxMoves returns how many keys may be moving at once.
func (o *options) maxMoves() int {
	if o.group.moves == 0 {
		return shards.Unlimited
	}
	return o.group.moves
}
