package leasehold

import "strconv"

// WithSlots allows n sessions at once over the fleet: a semaphore in place of a mutex. The slots are the Leases NAME-0
// to NAME-<n-1>, where NAME is that of WithLease, and each is a lease as any other: a campaign follows all of them and
// holds at most one. Of several that are free it takes the one with the lowest number, or any of them where many
// candidates compete. Session.Slot is the number.
//
// Candidates that disagree about n, as during a rollout, share the slots that all of them know; there can be as many
// sessions as the largest n. WithSlots excludes CreateNew, WithReclaim and WithPriority.
func WithSlots(n int) Option {
	return func(o *options) {
		o.slots = n
		if n < 1 || n > maxSlots {
			o.fault("WithSlots: want 1 to %d slots, not %d", maxSlots, n)
		}
	}
}

// maxSlots bounds what a candidate follows.
const maxSlots = 1000

// Slot returns the number of the slot that the session holds, from 0 to n-1 for WithSlots(n). No two live sessions have
// the same, so that it serves as the number of a worker. It is 0 without WithSlots.
func (s Session) Slot() int {
	if s, ok := s.state.(*session); ok {
		return s.campaign.options.slot
	}
	return 0
}

// slotName returns the name of the Lease of a slot.
func slotName(name string, slot int) string { return name + "-" + strconv.Itoa(slot) }

// forSlot returns the options of the campaign for one slot.
func (o *options) forSlot(slot int) *options {
	of := *o
	of.slot, of.name = slot, slotName(o.name, slot)
	return &of
}
