package sim

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	runMutations = flag.Bool("mutations", false, "break the core in each of the ways in testdata, and want it found")
	groupSeeds   = flag.Int("mutations.groups", 100, "in how many groups a mutation of groups has to be found")
	mutantSeeds  = flag.Uint64("mutations.seeds", 5000, "in how many seeds the simulation has to find a mutation")
)

// coreDir and shardsDir are the directories of the packages that are broken.
var (
	coreDir, _   = filepath.Abs("../..")
	shardsDir, _ = filepath.Abs("../shards")
)

// Each list of mutations and the tests that have to find them.
var mutations = []struct {
	file string
	dir  string // of the tests
	args func() []string
}{
	{"simulation.mutations", coreDir, func() []string {
		return []string{"-test.run=^TestSimulation$", "-test.timeout=10m", fmt.Sprint("-sim.seeds=", *mutantSeeds)}
	}},
	{"sharedwatch.mutations", coreDir, func() []string {
		return []string{"-test.run=^TestSharedWatch", "-test.timeout=2m"}
	}},
	{"groups.mutations", coreDir, func() []string {
		return []string{
			"-test.run=^TestGroup|^TestRing|^TestSpread", "-test.failfast", "-test.timeout=10m",
			fmt.Sprint("-group.seeds=", *groupSeeds),
		}
	}},
	{"shards.mutations", shardsDir, func() []string { return []string{"-test.timeout=2m"} }},
}

// A mutation replaces lines in functions of the core.
type mutation struct {
	name  string
	edits []*edit
}

// An edit replaces lines in one function.
type edit struct {
	function string // Type.method, or the function's name
	old, new []string
}

// TestMutationsApply shows that each mutation can be applied to the core as it is.
func TestMutationsApply(t *testing.T) {
	core := readCore(t)
	for _, list := range mutations {
		for _, m := range readMutations(t, list.file) {
			if _, err := m.apply(core); err != nil {
				t.Errorf("testdata/%s: %q: %v", list.file, m.name, err)
			}
		}
	}
}

// TestMutationsFound breaks the core in many ways, one at a time, and wants each found. The broken file goes to the
// compiler by -overlay. It takes minutes:
//
//	go test -v -run TestMutationsFound ./internal/sim -mutations
//	go test -v -run TestMutationsFound/groups ./internal/sim -mutations
func TestMutationsFound(t *testing.T) {
	if !*runMutations {
		t.Skip("without -mutations: builds the tests once for each mutation")
	}
	core := readCore(t)
	found := "mutation | found by\n---|---"
	for _, list := range mutations {
		for _, m := range readMutations(t, list.file) {
			t.Run(list.file+": "+m.name, func(t *testing.T) {
				broken, err := m.apply(core)
				if err != nil {
					t.Fatal(err)
				}
				cmd := exec.Command(build(t, list.dir, broken), list.args()...)
				cmd.Dir = list.dir
				out, err := cmd.CombinedOutput()
				if err == nil {
					t.Fatal("not found")
				}
				how := verdict.FindStringSubmatch(string(out))
				if how == nil {
					t.Fatalf("the tests failed without a reason: %v\n%s", err, out[max(0, len(out)-4000):])
				}
				found += fmt.Sprintf("\n%s | %s", m.name, strings.Join(how[1:], ""))
			})
		}
	}
	t.Log("what finds each, the seeds before it having found nothing:\n" + found)
}

// verdict finds in the output of a test why it failed.
var verdict = regexp.MustCompile(`(seed \d+: )[^\n]*\n\s*VIOLATION: ([^\n]*)|--- FAIL: ` +
	`(TestSharedWatch\S+|Test(?:Owner|Plan|Contradicts)\S*)|` +
	`--- FAIL: (TestGroups/\d+|TestGroup[^s]\S*|TestRing\S*|TestSpread\S*)|panic: ([^\n]*)`)

// readMutations reads a list in testdata; simulation.mutations describes the format.
func readMutations(t *testing.T, file string) (all []*mutation) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	var m *mutation
	var e *edit
	for i, line := range strings.Split(string(text), "\n") {
		name, begins := strings.CutPrefix(line, "== ")
		function, in := strings.CutPrefix(line, "in ")
		switch {
		case begins:
			m, e = &mutation{name: name}, nil
			all = append(all, m)
		case line == "" || strings.HasPrefix(line, "#"):
		case m == nil:
			t.Fatalf("testdata/%s:%d: want \"== NAME\" before %q", file, i+1, line)
		case in:
			e = &edit{function: function}
			m.edits = append(m.edits, e)
		case e == nil:
			t.Fatalf("testdata/%s:%d: want \"in FUNCTION\" before %q", file, i+1, line)
		case line[0] == '-':
			e.old = append(e.old, line[1:])
		case line[0] == '+':
			e.new = append(e.new, line[1:])
		case line[0] == ' ':
			e.old, e.new = append(e.old, line[1:]), append(e.new, line[1:])
		default:
			t.Fatalf("testdata/%s:%d: want a line that begins with \"-\", \"+\" or a blank, not %q", file, i+1, line)
		}
	}
	if len(all) == 0 {
		t.Fatalf("testdata/%s has no mutations", file)
	}
	return all
}

// readCore returns the files of the core, of the part of it that shares out the keys of groups, and of the one that
// reads annotations.
func readCore(t *testing.T) map[string]string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(coreDir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	shards, err := filepath.Glob(filepath.Join(shardsDir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	annotations, err := filepath.Glob(filepath.Join(coreDir, "internal", "annotation", "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, name := range slices.Concat(names, shards, annotations) {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		code, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = string(code)
	}
	return files
}

// findFunction returns the file that has a function, and the function's first line and the one after its last.
func findFunction(files map[string]string, name string) (file string, from, to int, err error) {
	for file, code := range files {
		positions := token.NewFileSet()
		parsed, err := parser.ParseFile(positions, file, code, 0)
		if err != nil {
			return "", 0, 0, err
		}
		for _, decl := range parsed.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && functionName(f) == name {
				return file, positions.Position(f.Pos()).Line - 1, positions.Position(f.End()).Line, nil
			}
		}
	}
	return "", 0, 0, fmt.Errorf("the core has no function %q", name)
}

func functionName(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return f.Name.Name
	}
	receiver := f.Recv.List[0].Type
	if star, ok := receiver.(*ast.StarExpr); ok {
		receiver = star.X
	}
	if generic, ok := receiver.(*ast.IndexExpr); ok {
		receiver = generic.X
	}
	return fmt.Sprint(receiver, ".", f.Name.Name)
}

// apply returns the files that m changes, as they are then.
func (m *mutation) apply(core map[string]string) (map[string]string, error) {
	if len(m.edits) == 0 {
		return nil, errors.New("it changes nothing")
	}
	files, changed := maps.Clone(core), map[string]string{}
	for _, e := range m.edits {
		file, code, err := e.apply(files)
		if err != nil {
			return nil, err
		}
		files[file], changed[file] = code, code
	}
	return changed, nil
}

// apply returns the name of the file that e changes, and its text then.
func (e *edit) apply(files map[string]string) (file, code string, err error) {
	file, from, to, err := findFunction(files, e.function)
	if err != nil {
		return "", "", fmt.Errorf("%w: find where its lines are now\n%s", err, strings.Join(e.old, "\n"))
	}
	if len(e.old) == 0 || slices.Equal(e.old, e.new) {
		return "", "", fmt.Errorf("it changes nothing in %s", e.function)
	}
	lines := strings.Split(files[file], "\n")
	at, times := 0, 0
	for i := from; i+len(e.old) <= to; i++ {
		if slices.EqualFunc(lines[i:i+len(e.old)], e.old, sameButIndentation) {
			at = i
			times++
		}
	}
	if times != 1 {
		return "", "", fmt.Errorf("%s in %s has these lines %d times, want once:\n%s",
			e.function, filepath.Base(file), times, strings.Join(e.old, "\n"))
	}
	return file, strings.Join(slices.Concat(lines[:at], e.new, lines[at+len(e.old):]), "\n"), nil
}

func sameButIndentation(a, b string) bool { return strings.TrimSpace(a) == strings.TrimSpace(b) }

// build builds the tests in dir with broken files in place of the core's.
func build(t *testing.T, dir string, broken map[string]string) (exe string) {
	t.Helper()
	temp := t.TempDir()
	replaced := map[string]string{}
	write := func(name, text string) string {
		path := filepath.Join(temp, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for file, code := range broken {
		replaced[file] = write(filepath.Base(file), code)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replaced})
	if err != nil {
		t.Fatal(err)
	}
	exe = filepath.Join(temp, "mutant.test")
	cmd := exec.Command("go", "test", "-c", "-vet=off", "-overlay", write("overlay.json", string(overlay)), "-o",
		exe, ".")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return exe
}
