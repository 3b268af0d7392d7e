package leasehold

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// mutations are what the simulation has to find. Each replaces a piece of the core, which must occur
// once in its file, by one that breaks a guarantee.
var mutations = []mutation{
	{"no precondition on release", "kube.go",
		`	return a.patch(ctx, r, freeSpec{})`,
		`	r.version = 0
	return a.patch(ctx, r, freeSpec{})`},
	{"no precondition at all on a patch", "kube.go",
		`}{precondition{r.resourceVersion()}, spec})`, `}{precondition{}, spec})`},
	{"release by the newest resourceVersion, whoever holds", "hold.go",
		`		return h.term.judge(r, c.duration)
	})`,
		`		if !r.held() {
			return h.term.judge(r, c.duration)
		}
		return nil
	})`},
	{"trust counted from the reply", "hold.go",
		`until := p.sent.add(k.c.renewDeadline)`,
		`until := k.c.clock.now().add(k.c.renewDeadline)`},
	{"trust counted from the reply to the claim", "campaign.go",
		`h := c.newHold(ctx, r, sent)`, `sent = c.clock.now()
	h := c.newHold(ctx, r, sent)`},
	{"remote clock compared", "lease.go",
		`	return later(s.vacant(), s.since.Add(s.wait))`,
		`	return later(s.vacant(), s.renewed.Add(s.wait))`},
	{"release before the body ends", "iter.go",
		`	return yield(Session{h})
}

// sequence`,
		`	context.AfterFunc(h.ctx, func() { h.finish(false) })
	return yield(Session{h})
}

// sequence`},
	{"renewals stop when ctx ends", "hold.go",
		`k.keep(context.WithoutCancel(ctx))`, `k.keep(ctx)`},
	{"expiry one renew interval early", "lease.go",
		`	return later(s.vacant(), s.since.Add(s.wait))`,
		`	return later(s.vacant(), s.since.Add(s.wait-s.wait/5))`},
	{"own duration in place of the recorded one", "lease.go",
		`n.wait = cmp.Or(r.duration, v.fallback)`, `n.wait = cmp.Or(v.fallback, r.duration)`},
	{"token from transitions", "hold.go",
		`token:     r.version,`, `token: uint64(r.transitions),`},
	{"context judged by timer only", "session.go",
		`		c.hold.check()`, ``},
	{"boot clock ignored", "clock.go",
		`return min(i.mono.Sub(now.mono), i.boot-now.boot)`, `return i.mono.Sub(now.mono)`},
	{"unknown outcome of a renewal assumed good", "hold.go",
		`	if reply.err == nil && len(k.pending) == 0 {`,
		`	if reply.err != nil && unknownOutcome(reply.err) && len(k.pending) > 0 {
		k.absorb(record{uid: k.term.uid, identity: k.term.identity, acquired: k.term.acquired, duration: k.c.duration, renewed: k.pending[len(k.pending)-1].stamp})
	}
	if reply.err == nil && len(k.pending) == 0 {`},
	{"unknown outcome of a claim assumed failed", "campaign.go",
		`	case unknownOutcome(err):
		c.doubts = remember(c.doubts, claim)`,
		`	case unknownOutcome(err):
		c.disclaim()`},
	{"a lost session releases", "hold.go",
		`		if err := h.loss(); err != nil {
			return err
		}
		return h.term.judge`,
		`		return h.term.judge`},
	{"same identity taken for same holder", "lease.go",
		`	case r.acquired != t.acquired:`, `	case false:`},
	{"the holder of a deleted Lease forgotten", "lease.go",
		`n.ghost = later(s.ghost, s.since.Add(s.wait))`, `n.ghost = s.ghost`},
	{"a session yielded with little trust", "campaign.go",
		`h.left() < c.renewDeadline/2`, `h.left() < 0`},
	{"no pause between failures", "backoff.go",
		`return max(shortestDelay, min(limit, max(pause, retryAfter(err))))`, `return shortestDelay`},
	{"the feed forgotten when the loop is left", "campaign.go",
		`		c.stopFeed()
		c.group.Wait()
`, ``},
	{"Vacate frees whoever holds", "acquire.go",
		`		if r.identity != o.identity {`, `		if false {`},
	{"a deletion without precondition", "kube.go",
		`metav1.DeleteOptions{Preconditions: &metav1.Preconditions{
		UID: &r.uid, ResourceVersion: new(r.resourceVersion()),
	}}`, `metav1.DeleteOptions{}`},
	{"whoever holds is reclaimed", "campaign.go",
		`c.reclaim && s.identity == c.api.identity`, `c.reclaim && s.held()`},
	{"Holders compares identities", "holders.go",
		`first || now != last`, `first || now.identity != last.identity`},
}

type mutation struct{ name, file, old, new string }

// hubMutations break what leases share. They cost news rather than a guarantee, for which conditional
// writes and the clock are enough, so that it is the tests of the hub that have to find them.
var hubMutations = []mutation{
	{"a feed that reads before it is entered, and not after", "feed.go",
		`		case epoch != hub.epoch:`, `		case epoch != hub.epoch && !known:`},
	{"a feed that reads before the watch is open", "hub.go",
		`			s.epoch++
`, `			s.epoch = 1
`},
	{"a watch opened at any state, as if it went on", "hub.go",
		`		opts.ResourceVersion = strconv.FormatUint(h.version, 10)`, `		opts.ResourceVersion = "0"`},
	{"a watch opened after the last version", "hub.go",
		`strconv.FormatUint(h.version, 10)`, `strconv.FormatUint(h.version+1, 10)`},
	{"deletions dropped", "hub.go",
		`	lease, ok := event.Object.(*coordinationv1.Lease)
	if !ok || lease == nil {`,
		`	lease, ok := event.Object.(*coordinationv1.Lease)
	if !ok || lease == nil || event.Type == watch.Deleted {`},
	{"one feed for each name", "hub.go",
		`	h.feeds[f.api.name] = append(h.feeds[f.api.name], f)`, `	h.feeds[f.api.name] = []*feed{f}`},
	{"a silent watch believed", "hub.go",
		`	signal(h.distrust)
	return true`, `	return true`},
	{"what a watch left out forgotten", "hub.go",
		`	h.skipped = h.skipped || version <= h.version`, ``},
	{"a forgotten version asked for again", "hub.go",
		`				if !progress {`, `				if false && !progress {`},
	{"a refusal tried again at once", "hub.go",
		`			pause = min(100*min(h.interval, time.Hour), time.Hour)`, ``},
	{"all read at once", "feed.go",
		`			if known { // others have to read now too`, `			if false {`},
	{"no reads while the watch cannot be opened", "hub.go",
		`		case now.Sub(served) >= h.interval:`, `		case now.Sub(served) < 0:`},
	{"odd content ignored", "hub.go",
		`			f.outdate()`, ``},
	{"a hub left running", "hub.go",
		`	if last && h.done != nil {`, `	if false {`},
	{"a lane left in use", "lane.go",
		`		l.users--`, ``},
}

// TestHubsAreTested breaks the hub in many ways, one at a time, and wants the hub's tests to fail. It
// takes a few minutes:
//
//	go test -v -run TestHubsAreTested .
func TestHubsAreTested(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package once for each mutation")
	}
	for _, m := range hubMutations {
		t.Run(strings.ReplaceAll(m.name, " ", "_"), func(t *testing.T) {
			out, err := exec.Command(mutant(t, m.file, m.old, m.new), "-test.run=^TestHub[A-Z]", "-test.timeout=2m").CombinedOutput()
			if err == nil {
				t.Fatal("not found")
			}
			found := regexp.MustCompile(`--- FAIL: (\S+)|panic: ([^\n]*)`).FindSubmatch(out)
			if found == nil {
				t.Fatalf("it failed without a judgement: %v\n%s", err, tail(out))
			}
			t.Logf("%s%s", found[1], found[2])
		})
	}
}

// TestCheckerIsChecked breaks the core in many ways, one at a time, and wants the simulation to find
// each within 5,000 seeds. The broken files go to the compiler by -overlay; nothing in the core knows
// of this. It takes a few minutes:
//
//	go test -v -run TestCheckerIsChecked .
func TestCheckerIsChecked(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package once for each mutation")
	}
	found := "mutation | seed | fault\n---|---|---"
	for _, m := range mutations {
		t.Run(strings.ReplaceAll(m.name, " ", "_"), func(t *testing.T) {
			exe := mutant(t, m.file, m.old, m.new)
			out, err := exec.Command(exe, "-test.run=^TestSimulation$", "-test.timeout=10m", "-sim.seeds=5000").CombinedOutput()
			if err == nil {
				t.Fatal("not found in 5,000 seeds")
			}
			fault := regexp.MustCompile(`seed (\d+): [^\n]*\n\s*FAULT: ([^\n]*)`).FindSubmatch(out)
			if fault == nil {
				t.Fatalf("it failed without a judgement: %v\n%s", err, tail(out))
			}
			found += fmt.Sprintf("\n%s | %s | %s", m.name, fault[1], fault[2])
		})
	}
	t.Log("what finds each, the seeds before it having found nothing:\n" + found)
}

func tail(out []byte) []byte { return out[max(0, len(out)-4000):] }

// mutant builds this package's tests with a piece of one file replaced.
func mutant(t *testing.T, file, old, new string) string {
	t.Helper()
	path, err := filepath.Abs(file)
	if err != nil {
		t.Fatal(err)
	}
	code, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(code), old); n != 1 {
		t.Fatalf("%s contains %d times, want once:\n%s", file, n, old)
	}
	dir := t.TempDir()
	broken, overlay, exe := filepath.Join(dir, file), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "mutant.test")
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{path: broken}})
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{broken: []byte(strings.Replace(string(code), old, new, 1)), overlay: replace} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("go", "test", "-c", "-vet=off", "-overlay", overlay, "-o", exe, ".").CombinedOutput(); err != nil {
		t.Fatal(fmt.Errorf("%w\n%s", err, out))
	}
	return exe
}

// The judge sees the known faults of client-go, in worlds without anybody else.
func TestCheckerSeesClientGo(t *testing.T) {
	missing := map[string]bool{twoLead: true, ledOn: true, freedAnothers: true, releasedTooSoon: true}
	for seed := uint64(1); len(missing) > 0; seed++ {
		if seed > 500 {
			t.Fatalf("not seen in 500 seeds: %v", missing)
		}
		s := newPeerSim(seed).simulate(t)
		if s.failed() {
			t.Fatal(s.story(false))
		}
		for _, fault := range s.judge.peers {
			if missing[fault] {
				delete(missing, fault)
				t.Logf("seed %d: %s; renew deadline %v, retry period %v", seed, fault, s.electors[0].config.RenewDeadline, s.electors[0].config.RetryPeriod)
			}
		}
	}
}
