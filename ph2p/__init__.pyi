from .api import ImageLike as ImageLike
from .api import invert as invert
from .api import invert_together as invert_together
from .api import load_inverter as load_inverter
from .api import score as score
from .config.compose import load_config as load_config
from .data import Target as Target
from .data import TargetError as TargetError
from .errors import UserError as UserError
from .evaluation.result import InversionResult as InversionResult
from .evaluation.score import TextScore as TextScore
from .inversion.lbfgs import BatchedLBFGS as BatchedLBFGS
from .inversion.module import PromptInversion as PromptInversion
from .inversion.projection import DelayedProjection as DelayedProjection
from .inversion.selection import Candidate as Candidate
from .inverter import Inverter as Inverter
from .models.generators import Generator as Generator
from .models.generators import load_generator as load_generator
from .models.scorer import Scorer as Scorer
from .models.scorer import load_scorer as load_scorer
from .models.vocabulary import Vocabulary as Vocabulary
from .report.records import read_results as read_results
from .report.table import write_report as write_report

__version__: str
