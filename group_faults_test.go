package leasehold

import (
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"

	"github.com/leasehold-go/leasehold/internal/annotation"
)

// editMember edits the Lease of a member.
func (f *fleet) editMember(member string, edit func(l *coordinationv1.Lease)) {
	for _, l := range f.memberLeases() {
		if l.Spec.HolderIdentity != nil && *l.Spec.HolderIdentity == member {
			f.srv.Edit(ns, l.Name, edit)
			return
		}
	}
	f.Fatalf("no Lease of %s", member)
}

// requests returns how many requests members have made.
func (f *fleet) requests(members ...string) (n int) {
	for _, member := range members {
		n += f.srv.Client(member).Requests()
	}
	return n
}

// A member whose Lease somebody asks to be handed over goes on: the request is for a lease that others wait for.
func TestGroupAskedToHandOver(t *testing.T) {
	asks := []struct {
		name string
		ask  func(l *coordinationv1.Lease)
	}{
		{"handover", func(l *coordinationv1.Lease) {
			l.Annotations[annotation.HandOver] = annotation.FormatHandOver(l.Spec.AcquireTime.Time, "")
		}},
		{"preferred holder", func(l *coordinationv1.Lease) {
			l.Spec.Strategy, l.Spec.PreferredHolder = new(coordinationv1.OldestEmulationVersion), new("b")
		}},
	}
	for _, c := range asks {
		t.Run("Spread, "+c.name, func(t *testing.T) {
			inFleet(t, func(f *fleet) {
				a := f.spread("a", Keys(numbered(4)...))
				f.sleep(time.Second)
				b := f.spread("b", Keys(numbered(4)...))
				f.sleep(2 * I)
				f.editMember("a", c.ask)
				f.sleep(I)
				f.wantShape("a b[2 2]")
				before := f.requests("a", "b")
				f.sleep(time.Minute)
				f.wantShape("a b[2 2]")
				if sent := f.requests("a", "b") - before; sent > int(2*time.Minute/(I*9/10)) {
					f.Errorf("%d requests in a minute, want the renewals of 2 members", sent)
				}
				a.quit()
				b.quit()
			})
		})
		t.Run("Join, "+c.name, func(t *testing.T) {
			inFleet(t, func(f *fleet) {
				a := f.join("a", 4)
				f.sleep(time.Second)
				b := f.join("b", 4)
				f.sleep(2 * I)
				f.editMember("a", c.ask)
				f.sleep(time.Minute)
				f.wantShape("a b[2 2]")
				b.quit()
				f.sleep(I)
				f.wantShape("a[4]")
				a.quit()
			})
		})
	}
}
