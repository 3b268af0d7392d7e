package leasehold

import (
	"context"
	"maps"
	"strings"
	"time"
)

// unusedLeases are Leases of the group that are of no use. They are deleted after a while.
type unusedLeases struct {
	group  *group
	roster *roster

	since    map[string]time.Time // since when a Lease is of no use
	setbacks setbacks             // by the name of a Lease, of deletions that failed
}

// tidy deletes one Lease of the group that has been of no use for a while. One whose deletion failed is left alone for
// a while.
func (u *unusedLeases) tidy(ctx context.Context, v view) {
	g, t := u.group, v.table.table
	maps.DeleteFunc(u.since, func(name string, _ time.Time) bool { _, exists := v.members[name]; return !exists })
	maps.DeleteFunc(u.setbacks, func(name string, _ setback) bool { _, exists := v.members[name]; return !exists })
	used := map[string]bool{}
	for _, r := range t.Rows {
		used[r.Lease] = true
	}
	digests := map[string]bool{t.Keys: true, v.report.Own: true}
	for _, m := range v.members {
		digests[m.report.Own], digests[m.report.Keys] = true, true
	}
	for name, m := range v.members {
		rest, page := strings.CutPrefix(name, g.client.group+"-k-")
		digest, _, _ := strings.Cut(rest, "-")
		if used[name] || !page && m.seen.held() || page && digests[digest] {
			delete(u.since, name)
			delete(u.setbacks, name)
			continue
		}
		since, ok := u.since[name]
		if !ok {
			u.since[name] = v.now
			continue
		}
		if v.now.Sub(since) < 2*g.campaign.options.duration || v.now.Before(u.setbacks[name].until) {
			continue
		}
		if err := g.client.delete(ctx, "delete", name, m.seen.record); err != nil && !conflicts(err) {
			g.campaign.log.debug("a Lease of the group that is of no use was not deleted", "name", name, "error", err)
			u.setbacks.putOff(name, err, g.campaign)
			return
		}
		delete(u.since, name)
		delete(u.setbacks, name)
		u.roster.forgetUnlabelled(name) // no watch says that it is gone
		return
	}
}
