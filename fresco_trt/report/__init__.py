"""One page about a bundle, to be sent or kept: its plan, engines, pictures and measurements.

Beside the data path: reads what others wrote, a bundle and the JSON of ``fresco-trt bench`` and
``fresco-trt profile``. The page is one HTML file that asks for nothing from outside and runs no
script.
"""

from fresco_trt.report.job import ReportRequest as ReportRequest
from fresco_trt.report.job import make_report as make_report
