package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/leasehold-go/leasehold/testbed/internal/boottime"
)

// A scenario is a history made for a test. Its times are in milliseconds.
type scenario struct {
	history
	base  time.Duration
	lease string // of what is added
}

func newScenario() *scenario {
	return &scenario{history: history{events: map[string][]event{}}, base: boottime.Now(), lease: alone}
}

// on says that what follows is about another lease, or about a key of a group.
func (t *scenario) on(lease string) *scenario {
	t.lease = lease
	return t
}

func (t *scenario) at(ms int) time.Duration { return t.base + time.Duration(ms)*time.Millisecond }

func (t *scenario) wall(ms int) time.Time { return time.Now().Add(t.at(ms) - boottime.Now()) }

// session adds one whose looks took no time, and the event of its acquisition at the first.
func (t *scenario) session(name string, token uint64, looks ...int) *scenario {
	k := loop
	if token == 0 {
		k = elector
	} else if isKey(t.lease) {
		k = sharer
	}
	t.records = append(t.records, record{Session: name, What: begin, Of: &beginning{
		Lease: t.lease, Candidate: name, Kind: k, Identity: name, Token: token, Deadline: 4 * time.Second,
		Since: t.at(-60_000), Started: t.at(-60_000),
	}})
	for _, ms := range looks {
		t.look(name, ms, ms, ms, false)
	}
	if k == loop && len(looks) > 0 {
		t.holder(token, name, looks[0], false)
	}
	return t
}

// look adds a look of a session and the write after it.
func (t *scenario) look(name string, before, after, sent int, refused bool) *scenario {
	t.records = append(t.records, record{
		Session: name, What: look, Before: t.at(before), After: t.at(after), Sent: t.at(sent), Done: t.at(sent),
		Refused: refused,
	})
	return t
}

func (t *scenario) event(e event) *scenario {
	e.UID = "uid"
	events := t.events[alone]
	if n := len(events); n > 0 && events[n-1].Holder == e.Holder {
		e.Acquired = events[n-1].Acquired // the same term
	}
	t.events[alone] = append(events, e)
	return t
}

func (t *scenario) holder(version uint64, name string, ms int, byHand bool) *scenario {
	return t.event(event{At: t.at(ms), Version: version, Holder: name, Acquired: t.wall(ms), Duration: 5 * time.Second,
		ByHand: byHand})
}

func (t *scenario) put(name string, token uint64, ms int, accepted bool) *scenario {
	t.decisions = append(t.decisions,
		decision{At: t.at(ms), Lease: t.lease, Session: name, Token: token, Accepted: accepted})
	return t
}

func (t *scenario) fault(candidate string, from, to int) *scenario {
	t.faults = append(t.faults, fault{From: t.at(from), To: t.at(to), Kind: "stop", Candidate: candidate,
		Text: candidate + ": stopped"})
	return t
}

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		name     string
		scenario *scenario
		want     string // in the violations; "" wants none
		overlaps string // counts
		lock     porcupine.CheckResult
	}{
		{"handover", newScenario().session("a", 5, 10, 20).session("b", 7, 30, 40), "", "", porcupine.Ok},
		{"and back", newScenario().session("a", 5, 10, 20).session("b", 7, 30).session("c", 9, 40), "", "",
			porcupine.Ok},
		{"found live in the same instant", newScenario().session("a", 5, 10, 20).session("b", 7, 20, 30), "", "",
			porcupine.Ok},
		{"live within another's life", newScenario().session("a", 5, 10, 40).session("b", 7, 20, 30),
			"a (token 5) and b (token 7) were live together for 10ms", "1 leasehold", porcupine.Illegal},
		{"live before another was over", newScenario().session("a", 5, 10, 30).session("b", 7, 20, 40),
			"were live together for 10ms", "1 leasehold", porcupine.Illegal},
		{"seen once within another's life", newScenario().session("a", 5, 10, 30).session("b", 7, 20),
			"a (token 5) was live after b (token 7), whose token is greater", "1 leasehold", porcupine.Illegal},
		{"frozen while it looked: it may have been live before",
			newScenario().session("a", 5, 10).session("b", 7, 20, 30).
				look("a", 11, 40, 40, true), "", "", porcupine.Ok},
		{"frozen while it looked, when another was live", newScenario().session("a", 5, 10).session("b", 7, 20, 30).
			look("a", 21, 40, 40, true), "were live together for 1ms", "1 leasehold", porcupine.Illegal},
		{"token that goes back", newScenario().session("a", 7, 10, 20).session("b", 5, 30, 40),
			"b (token 5) was live after a (token 7), whose token is greater", "1 leasehold", porcupine.Illegal},
		{"token used twice", newScenario().session("a", 7, 10, 20).session("b", 7, 30, 40), "the same token", "",
			porcupine.Illegal},

		{"live after the store refused it",
			newScenario().session("a", 5, 10).look("a", 11, 11, 12, true).look("a", 20, 20, 20, true),
			"a (token 5) was live after the store had refused it", "", porcupine.Ok},
		{"the store takes a token that is too small", newScenario().put("b", 7, 10, true).put("a", 5, 20, true),
			"the store accepted a write of a (token 5) after one with token 7", "", porcupine.Ok},
		{"the store refuses a token that is too small", newScenario().put("b", 7, 10, true).put("a", 5, 20, false), "",
			"", porcupine.Ok},

		{"emptied by hand", newScenario().session("a", 5, 10, 4000).holder(6, "", 20, true).session("b", 7, 30, 40),
			"", "1 by hand", porcupine.Ok},
		{"emptied by hand, and trusted for longer than the deadline",
			newScenario().session("a", 5, 10, 4021).holder(6, "", 20, true).session("b", 7, 30, 40),
			"led on for 4.001s", "1 leasehold", porcupine.Illegal},
		{"emptied by hand after it was taken",
			newScenario().session("a", 5, 10, 40).session("b", 7, 20).holder(8, "", 30, true),
			`"b" took the lease at version 7`, "1 leasehold", porcupine.Illegal},
		{"label edited by hand", newScenario().session("a", 5, 10,
			40).event(event{Version: 6, Holder: "a", Duration: 5 * time.Second, ByHand: true}).session("b", 7, 30, 40),
			"were live together", "1 leasehold", porcupine.Illegal},
		{"deleted under one that could see it", newScenario().session("a", 5, 10, 40).
			event(event{At: newScenario().at(20), Version: 6, Holder: "a", Deleted: true, ByHand: true}).session("b",
			7, 30, 40),
			"which the second candidate could see", "1 leasehold", porcupine.Illegal},
		{"deleted under one that was stopped", newScenario().session("a", 5, 10, 40).
			event(event{At: newScenario().at(20), Version: 6, Holder: "a", Deleted: true, ByHand: true}).session("b",
			7, 30, 40).
			fault("b", 5, 15), "", "1 by hand", porcupine.Ok},
		{"deleted while another was stopped", newScenario().session("a", 5, 10, 40).
			event(event{At: newScenario().at(20), Version: 6, Holder: "a", Deleted: true, ByHand: true}).session("b",
			7, 30, 40).
			fault("c", 5, 15), "which the second candidate could see", "1 leasehold", porcupine.Illegal},

		{"client-go's beside each other", newScenario().session("a", 0, 10, 40).session("b", 0, 20, 30), "",
			"1 client-go", porcupine.Ok},
		{"client-go's outlives its lease", newScenario().session("a", 0, 10, 40).session("b", 7, 20, 30), "",
			"1 client-go", porcupine.Ok},
		{"client-go's outlives its lease, and the next term is edited by hand",
			newScenario().session("a", 0, 10, 5000).session("b", 7, 20, 5010).
				event(event{Version: 8, Holder: "b", Duration: 7 * time.Second, ByHand: true}).
				event(event{Version: 9, Holder: "b", Duration: 5 * time.Second}).
				event(event{Version: 10, Holder: "b", Duration: 5 * time.Second, ByHand: true}), "", "1 client-go",
			porcupine.Ok},
		{"client-go's begins after it was over",
			newScenario().session("b", 7, 20, 30).holder(8, "", 35, false).session("a", 0, 25, 40), "", "1 client-go",
			porcupine.Ok},
		{"client-go's releases another's",
			newScenario().session("a", 5, 10, 40).event(event{Version: 6, EmptyString: true}).session("b", 7, 20, 50),
			"", "1 client-go", porcupine.Ok},
		{"client-go's takes a lease from a live holder",
			newScenario().session("a", 5, 10, 40).holder(6, "b", 20, false).session("b", 0, 30, 50),
			`"b" took the lease at version 6`, "1 leasehold", porcupine.Ok},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := check(tt.scenario.history)
			got := ""
			for _, x := range v.violations {
				got += x.Text + "\n"
			}
			if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
				t.Errorf("violations %q, want %q", got, tt.want)
			}
			if got := counts(v.overlaps); got != tt.overlaps {
				t.Errorf("overlaps %q, want %q", got, tt.overlaps)
			}
			if got, _ := linearize(v.byLease[alone]); got != tt.lock {
				t.Errorf("porcupine says %v, want %v", got, tt.lock)
			}
			if got := tt.scenario.around(alone, tt.scenario.at(0), tt.scenario.at(50),
				v.byLease[alone]); strings.Count(got, "\n") < len(v.byLease[alone]) {
				t.Errorf("what happened: %s", got)
			}
		})
	}
}

// The keys of a group are judged one by one, and no edit excuses an overlap.
func TestCheckGroups(t *testing.T) {
	const key, other = crew + "/k01", crew + "/k02"
	deleted := event{Version: 6, Deleted: true, ByHand: true}
	for _, tt := range []struct {
		name     string
		scenario *scenario
		want     string // in the violations; "" wants none
	}{
		{"moved", newScenario().on(key).session("a", 5, 10, 20).session("b", 7, 30, 40), ""},
		{"two keys", newScenario().on(key).session("a", 5, 10, 40).on(other).session("b", 5, 20, 30), ""},
		{"two work on one", newScenario().on(key).session("a", 5, 10, 40).session("b", 7, 20, 30),
			"a (token 5) and b (token 7) were live together for 10ms"},
		{"a member's Lease was deleted",
			newScenario().event(deleted).on(key).session("a", 5, 10, 40).session("b", 7, 20, 30), "were live together"},
		{"token that goes back", newScenario().on(key).session("a", 7, 10, 20).session("b", 5, 30, 40),
			"b (token 5) was live after a (token 7), whose token is greater"},
		{"works after the store refused it",
			newScenario().on(key).session("a", 5, 10).look("a", 11, 11, 12, true).look("a", 20, 20, 20, true),
			"a (token 5) was live after the store had refused it"},
		{"a late write passes", newScenario().on(key).put("b", 7, 10, true).put("a", 5, 20, true),
			"the store accepted a write of a (token 5) after one with token 7"},
		{"late writes do not", newScenario().on(key).put("b", 7, 10, true).put("a", 5, 20, false), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := check(tt.scenario.history)
			got := ""
			for _, x := range v.violations {
				got += x.Text + "\n"
			}
			if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
				t.Errorf("violations %q, want %q", got, tt.want)
			}
		})
	}
	v := check(newScenario().on(key).session("a", 5, 10, 20).session("b", 7, 30).session("b2", 9, 40).history)
	if v.groups.sessions != 3 || v.groups.moves != 2 || v.handovers != 0 || v.groups.ends["killed"] != 3 {
		t.Errorf("counted %+v, %d handovers", v.groups, v.handovers)
	}
}

func TestLateWrites(t *testing.T) {
	scenario := newScenario().session("a", 5, 10).session("b", 7, 20, 40).session("c", 0, 60).session("d", 9, 70).
		look("a", 11, 11, 15, false). // in time
		look("a", 12, 12, 21, false). // before b wrote
		look("a", 13, 13, 30, true).
		look("c", 61, 61, 65, false).
		look("c", 62, 62, 75, false)
	v := check(scenario.history)
	got := fmt.Sprint(v.late, v.fenced, v.early, v.lateElect)
	if got != "2 1 1 1" {
		t.Errorf("tried, fenced, too early to be fenced, client-go's: %s", got)
	}
	scenario = newScenario().put("a", 5, 1, true).put("c", 0, 2, false).put("b", 7, 3, true).put("a", 5, 4,
		false).put("a", 5, 5, false)
	if v := check(scenario.history); v.unfenced != 2 || v.violations != nil {
		t.Errorf("%d went through, violations %v", v.unfenced, v.violations)
	}
}

func TestStore(t *testing.T) {
	var journal strings.Builder
	s := newStore(&journal)
	for _, w := range []struct {
		lease   string
		token   uint64
		refused bool
	}{{"a", 5, false}, {"a", 5, false}, {"a", 7, false}, {"a", 5, true}, {"b", 5, false}, {"a", 0, false},
		{"a", 8, false}, {"a", 7, true}} {
		var refused bool
		if err := s.Put(Write{Lease: w.lease, Token: w.token}, &refused); err != nil || refused != w.refused {
			t.Errorf("%+v: refused %v, %v", w, refused, err)
		}
	}
	if n := strings.Count(journal.String(), `"ok":true`); n != 5 {
		t.Errorf("accepted %d, want 5: %s", n, journal.String())
	}
}

func TestReadLines(t *testing.T) {
	file := filepath.Join(t.TempDir(), "journal")
	j := &journal{}
	var err error
	if j.file, err = os.Create(file); err != nil {
		t.Fatal(err)
	}
	defer j.file.Close()
	for _, r := range []record{{Session: "a", What: begin, Of: &beginning{Lease: alone, Token: 7}},
		{Session: "a", What: look, Refused: true}} {
		if err := j.write(r); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Fprint(j.file, `{"s":"a`) // of a process that was killed
	var got []record
	if err := readLines(file, func(r record) { got = append(got, r) }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].Of.Token != 7 || !got[1].Refused {
		t.Errorf("read %v", got)
	}
	fmt.Fprintln(j.file)
	if err := readLines(file, func(record) {}); err == nil || !strings.Contains(err.Error(), file+":3") {
		t.Errorf("a line that is no JSON: %v", err)
	}
}
