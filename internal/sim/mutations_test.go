package sim

import (
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
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
	mutantSeeds  = flag.Uint64("mutations.seeds", 5000, "in how many seeds the simulation has to find a mutation")
)

// core is the directory of the package that is broken.
var core, _ = filepath.Abs("../..")

// Each list of mutations and the tests that have to find them.
var mutations = []struct {
	file string
	args func() []string
}{
	{"simulation.mutations", func() []string {
		return []string{"-test.run=^TestSimulation$", "-test.timeout=10m", fmt.Sprint("-sim.seeds=", *mutantSeeds)}
	}},
	{"sharedwatch.mutations", func() []string {
		return []string{"-test.run=^TestHub[A-Z]", "-test.timeout=2m"}
	}},
}

// A mutation replaces lines in a function of the core.
type mutation struct {
	name     string
	function string // Type.method, or the function's name
	old, new []string
}

// TestMutationsApply shows that each mutation can be applied to the core as it is.
func TestMutationsApply(t *testing.T) {
	functions := parseCore(t)
	for _, list := range mutations {
		for _, m := range readMutations(t, list.file) {
			if _, _, err := m.apply(functions); err != nil {
				t.Errorf("testdata/%s: %q: %v", list.file, m.name, err)
			}
		}
	}
}

// TestMutationsFound breaks the core in many ways, one at a time, and wants each found. The broken file goes to the
// compiler by -overlay. It takes minutes:
//
//	go test -v -run TestMutationsFound ./internal/sim -mutations
func TestMutationsFound(t *testing.T) {
	if !*runMutations {
		t.Skip("without -mutations: builds the tests once for each mutation")
	}
	functions := parseCore(t)
	found := "mutation | found by\n---|---"
	for _, list := range mutations {
		for _, m := range readMutations(t, list.file) {
			t.Run(strings.ReplaceAll(m.name, " ", "_"), func(t *testing.T) {
				file, code, err := m.apply(functions)
				if err != nil {
					t.Fatal(err)
				}
				cmd := exec.Command(build(t, file, code), list.args()...)
				cmd.Dir = core
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
var verdict = regexp.MustCompile(`(seed \d+: )[^\n]*\n\s*VIOLATION: ([^\n]*)|--- FAIL: (TestHub\S+)|panic: ([^\n]*)`)

// readMutations reads a list in testdata; simulation.mutations describes the format.
func readMutations(t *testing.T, file string) (all []*mutation) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	var m *mutation
	for i, line := range strings.Split(string(text), "\n") {
		name, begins := strings.CutPrefix(line, "== ")
		function, in := strings.CutPrefix(line, "in ")
		switch {
		case begins:
			m = &mutation{name: name}
			all = append(all, m)
		case line == "" || strings.HasPrefix(line, "#"):
		case m == nil:
			t.Fatalf("testdata/%s:%d: want \"== NAME\" before %q", file, i+1, line)
		case in:
			m.function = function
		case line[0] == '-':
			m.old = append(m.old, line[1:])
		case line[0] == '+':
			m.new = append(m.new, line[1:])
		case line[0] == ' ':
			m.old, m.new = append(m.old, line[1:]), append(m.new, line[1:])
		default:
			t.Fatalf("testdata/%s:%d: want a line that begins with \"-\", \"+\" or a blank, not %q", file, i+1, line)
		}
	}
	if len(all) == 0 {
		t.Fatalf("testdata/%s has no mutations", file)
	}
	return all
}

// A function is where a function of the core is.
type function struct {
	file     string
	lines    []string // of the file
	from, to int      // of the lines, those of the function
}

// parseCore returns the core's functions by name.
func parseCore(t *testing.T) map[string]function {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(core, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	functions := map[string]function{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		code, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		positions := token.NewFileSet()
		parsed, err := parser.ParseFile(positions, file, code, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range parsed.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok {
				functions[functionName(f)] = function{
					file, strings.Split(string(code), "\n"),
					positions.Position(f.Pos()).Line - 1, positions.Position(f.End()).Line,
				}
			}
		}
	}
	return functions
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

// apply returns the name of the file that m changes, and its text then.
func (m *mutation) apply(functions map[string]function) (file, code string, err error) {
	f, ok := functions[m.function]
	if !ok {
		return "", "", fmt.Errorf("the core has no function %q: find where its lines are now\n%s",
			m.function, strings.Join(m.old, "\n"))
	}
	if len(m.old) == 0 || slices.Equal(m.old, m.new) {
		return "", "", fmt.Errorf("it changes nothing")
	}
	at, times := 0, 0
	for i := f.from; i+len(m.old) <= f.to; i++ {
		if slices.EqualFunc(f.lines[i:i+len(m.old)], m.old, sameButIndentation) {
			at = i
			times++
		}
	}
	if times != 1 {
		return "", "", fmt.Errorf("%s in %s has these lines %d times, want once:\n%s",
			m.function, filepath.Base(f.file), times, strings.Join(m.old, "\n"))
	}
	lines := slices.Concat(f.lines[:at], m.new, f.lines[at+len(m.old):])
	return f.file, strings.Join(lines, "\n"), nil
}

func sameButIndentation(a, b string) bool { return strings.TrimSpace(a) == strings.TrimSpace(b) }

// build builds the core's tests with code in place of one file.
func build(t *testing.T, file, code string) (exe string) {
	t.Helper()
	dir := t.TempDir()
	broken, overlay, exe := filepath.Join(dir, filepath.Base(file)), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "mutant.test")
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{file: broken}})
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{broken: []byte(code), overlay: replace} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "test", "-c", "-vet=off", "-overlay", overlay, "-o", exe, ".")
	cmd.Dir = core
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return exe
}
