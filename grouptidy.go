package leasehold

import (
	"context"
	"strings"
)

// tidy deletes one Lease of the group that has been of no use for a while.
func (a *assigner) tidy(ctx context.Context, v view) error {
	g, t := a.group, v.table.table
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
			delete(a.unused, name)
			continue
		}
		since, ok := a.unused[name]
		if !ok {
			a.unused[name] = v.now
			continue
		}
		if v.now.Sub(since) < 2*g.campaign.options.duration {
			continue
		}
		delete(a.unused, name)
		if err := g.client.delete(ctx, "delete", name, m.seen.record); err != nil && !conflicts(err) {
			g.campaign.log.debug("a Lease of the group that is of no use was not deleted", "name", name, "error", err)
			continue
		}
		a.forgetUnlabelled(name) // no watch says that it is gone
	}
	return nil
}
