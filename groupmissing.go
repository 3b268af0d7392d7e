package leasehold

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/leasehold-go/leasehold/internal/shards"
)

// missingTerms are terms that the table names and whose Leases were deleted. Such a term is over when its Lease has
// been missing for its duration.
type missingTerms struct {
	group  *group
	clock  clock
	roster *roster

	since  map[shards.Term]time.Time // since when a term is known to have no Lease
	unsure []shards.Term             // whose Leases seem to be missing
}

// ended reports whether a term is certainly over. If it is not, at says when that will be known unless something
// happens; zero if only news can tell.
func (m *missingTerms) ended(v view, r shards.Row) (ended bool, at time.Time) {
	if r.Term == v.me.Term {
		return false, time.Time{}
	}
	if member, ok := v.members[r.Lease]; ok && string(member.seen.uid) == r.UID {
		delete(m.since, r.Term)
		if term, held := termOf(r.Lease, member.seen.record); held && term == r.Term {
			return false, time.Time{}
		}
		return member.seen.version > r.Seen, time.Time{}
	}
	if v.listed < r.Seen || v.listed == 0 {
		return false, time.Time{}
	}
	// Its Lease was deleted. It may not have heard, and trust it for as long as it may trust any.
	since, ok := m.since[r.Term]
	if !ok {
		if !slices.Contains(m.unsure, r.Term) {
			m.unsure = append(m.unsure, r.Term)
		}
		return false, time.Time{}
	}
	at = since.Add(max(m.group.campaign.options.duration, time.Duration(r.Seconds)*time.Second))
	return !v.now.Before(at), at
}

// readUnsure reads the Leases that seem to be missing: a Lease may have lost its label, or a watch may have left it
// out.
func (m *missingTerms) readUnsure(ctx context.Context) error {
	unsure := m.unsure
	m.unsure = nil
	// So that a Lease that cannot be read does not keep the others from being read.
	rand.Shuffle(len(unsure), func(i, j int) { unsure[i], unsure[j] = unsure[j], unsure[i] })
	for _, term := range unsure {
		lease, err := m.group.client.get(ctx, "get member", term.Lease)
		if err != nil {
			return err
		}
		if lease != nil && string(lease.UID) == term.UID && m.group.isMember(term.Lease) {
			m.roster.record(lease)
		} else {
			m.since[term] = m.clock.now().mono
		}
		m.roster.setDirty()
	}
	return nil
}
